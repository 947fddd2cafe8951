/** What the page asks the pack's own routes. */
import { api } from "../../../scripts/api.js";
import { post } from "../shared/server.js";

/** Sends "stop", "save" or "sample" to a run; a sentence about what happens now. */
export async function sendCommand(run, command) {
  const answer = await post("command", { run, command });
  return (await answer.json()).message ?? "";
}

/** Lets the server put a saved step into a folder of its own; a sentence that says where. */
export async function exportStep(run, step) {
  const answer = await post("export", { run, step });
  const { message } = await answer.json();
  if (!answer.ok) throw new Error(message);
  return message;
}

/** A run that was stopped is to go on with the next Run. Throws with a sentence. */
export async function continueRun(run) {
  const answer = await post("continue", { run });
  if (!answer.ok) throw new Error((await answer.json()).message);
}

/** {node: what Run would do}, {} where the server does not say */
export async function fetchPlans(prompt, nodes) {
  const answer = await post("plan", { prompt, nodes });
  return answer.ok ? answer.json() : {};
}

/** What a training needs, and which of its settings cannot act; null where the server does not say. */
export async function fetchEstimate(prompt, node) {
  const answer = await post("estimate", { prompt, node }).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

/** The last run of each node since ComfyUI was started: [{run, workflow, node, running}]. */
export async function fetchLastRuns() {
  const answer = await api.fetchApi("/personalize/runs");
  return answer.ok ? answer.json() : [];
}

/** What a run has reported, or null if nothing is known of it. */
export async function fetchRun(run) {
  const answer = await api.fetchApi(`/personalize/runs/${encodeURIComponent(run)}`);
  if (!answer.ok) return null;
  const data = await answer.json();
  return data.history?.length || data.previews?.length ? data : null;
}

/** {preset: {widget: value}} */
export async function fetchPresets() {
  const answer = await api.fetchApi("/personalize/presets");
  return answer.ok ? answer.json() : {};
}

/** Address of an output file; small: a light copy for thumbnails. */
export function imageAddress({ image, version }, small = false) {
  const query = new URLSearchParams({
    filename: image.filename, subfolder: image.subfolder ?? "", type: image.type ?? "output", version });
  if (small) query.set("preview", "webp;80");
  return api.apiURL(`/view?${query}`);
}
