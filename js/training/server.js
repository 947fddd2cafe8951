/** What the page asks the pack's own routes. */
import { api } from "../../../scripts/api.js";

/** Sends "stop", "save" or "sample" to a run; a sentence about what happens now. */
export async function sendCommand(run, command) {
  const answer = await api.fetchApi("/personalize/command", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ run, command }),
  });
  return (await answer.json()).message ?? "";
}

/** Lets the server put a saved step into a folder of its own; a sentence that says where. */
export async function exportStep(run, step) {
  const answer = await api.fetchApi("/personalize/export", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ run, step }) });
  const { message } = await answer.json();
  if (!answer.ok) throw new Error(message);
  return message;
}

/** A run that was stopped is to go on with the next Run. Throws with a sentence. */
export async function continueRun(run) {
  const answer = await api.fetchApi("/personalize/continue", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ run }) });
  if (!answer.ok) throw new Error((await answer.json()).message);
}

/** @param question JSON of {prompt, nodes} @returns {node: what Run would do}, {} where the server does not say */
export async function fetchPlans(question) {
  const answer = await api.fetchApi("/personalize/plan", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: question });
  return answer.ok ? answer.json() : {};
}

/** Runs in progress: [{run, name, node}]. */
export async function fetchRunsInProgress() {
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
