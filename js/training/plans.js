/**
 * What Run would do and what it needs, asked of the server for the graph as it stands: a moment after it was changed; and
 * what it would do also when something else may have changed that, as a run that has ended.
 */
import { app } from "../../../scripts/app.js";
import { inFrontOf } from "../shared/api_prompt.js";
import { fetchEstimate, fetchPlans } from "./server.js";

const WAIT_MS = 400;
/** Nodes whose values are made when they are asked for: a picture of the camera, a drawn view. They are left in peace. */
const MADE_WHEN_ASKED = /webcam|load_?3d|preview_?3d|record_?audio/i;

let timer = 0;
let asked = "";
let plans = {};
let estimated = "";

/**
 * @param find gives the places of the training panels @param anew whether Run may do something else for the same graph
 */
export function askSoon(find, anew = false) {
  if (anew) asked = "";
  clearTimeout(timer);
  timer = setTimeout(() => ask(find()), WAIT_MS);
}

async function ask(places) {
  if (!places.length || document.hidden || hasNodesMadeWhenAsked(app.rootGraph ?? app.graph)) return;
  const { output } = await app.graphToPrompt();
  const nodes = [...new Set(places.map((place) => place.executionId))].filter((id) => output[id]);
  const prompt = withoutTitles(inFrontOf(nodes, output));
  const question = JSON.stringify({ prompt, nodes });
  await Promise.all([askForPlans(question, prompt, nodes, places), askForEstimates(question, prompt, nodes, places)]);
}

async function askForPlans(question, prompt, nodes, places) {
  if (question !== asked) {
    asked = question;
    const answer = nodes.length ? await fetchPlans(prompt, nodes) : {};
    if (question !== asked) return; // a later question is under way
    plans = answer;
  }
  for (const { part, executionId } of places) part.panel.showPlan(plans[executionId] ?? null);
}

/** Of trainings that do not run yet. */
async function askForEstimates(question, prompt, nodes, places) {
  const waiting = places.filter(({ part }) => !part.panel.history.isRunning);
  const ids = nodes.filter((node) => waiting.some(({ executionId }) => executionId === node));
  const key = JSON.stringify([question, ids]);
  if (key === estimated) return;
  estimated = key;
  for (const node of ids) {
    const answer = await fetchEstimate(prompt, node);
    if (key !== estimated) return; // a later question is under way
    for (const { part, executionId } of waiting) if (executionId === node) part.panel.showEstimate(answer);
  }
}

function hasNodesMadeWhenAsked(graph) {
  return graph?.nodes.some((node) => MADE_WHEN_ASKED.test(node.type) || hasNodesMadeWhenAsked(node.subgraph)) ?? false;
}

const withoutTitles = (prompt) => Object.fromEntries(
  Object.entries(prompt).map(([id, { class_type, inputs }]) => [id, { class_type, inputs }]));
