/**
 * What Run would do, asked of the server for the graph as it stands: a moment after it was changed, and when something
 * else may have changed it, as a run that has ended.
 */
import { app } from "../../../scripts/app.js";
import { fetchPlans } from "./server.js";

const WAIT_MS = 400;
/** Nodes whose values are made when they are asked for: a picture of the camera, a drawn view. They are left in peace. */
const MADE_WHEN_ASKED = /webcam|load_?3d|preview_?3d|record_?audio/i;

let timer = 0;
let asked = "";
let answers = {};

/**
 * @param find gives the places of the training panels @param anew whether the answer may be another one for the same graph
 */
export function askSoon(find, anew = false) {
  if (anew) asked = "";
  clearTimeout(timer);
  timer = setTimeout(() => ask(find()), WAIT_MS);
}

async function ask(places) {
  if (!places.length || document.hidden || hasNodesMadeWhenAsked(app.rootGraph ?? app.graph)) return;
  const { output: prompt } = await app.graphToPrompt();
  const nodes = [...new Set(places.map((place) => place.executionId))].filter((id) => prompt[id]);
  const question = JSON.stringify({ prompt: inFrontOf(nodes, prompt), nodes });
  if (question !== asked) {
    asked = question;
    const answer = nodes.length ? await fetchPlans(question) : {};
    if (question !== asked) return; // a later question is under way
    answers = answer;
  }
  for (const place of places) place.part.panel.showPlan(answers[place.executionId] ?? null);
}

function hasNodesMadeWhenAsked(graph) {
  return graph?.nodes.some((node) => MADE_WHEN_ASKED.test(node.type) || hasNodesMadeWhenAsked(node.subgraph)) ?? false;
}

/** These nodes of a prompt and those that they are made of, with what counts of them. */
function inFrontOf(nodes, prompt) {
  const found = new Set(nodes);
  for (const id of found) {
    for (const value of Object.values(prompt[id]?.inputs ?? {})) {
      if (Array.isArray(value) && prompt[value[0]]) found.add(String(value[0]));
    }
  }
  return Object.fromEntries([...found].map((id) => {
    const { class_type, inputs } = prompt[id];
    return [id, { class_type, inputs }];
  }));
}
