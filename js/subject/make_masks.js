/** Masks of a subject's pictures from the model's own attention, made by the pack's nodes with the model that Train uses. */
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { inFrontOf } from "../shared/api_prompt.js";
import { t } from "../shared/texts.js";

const FINENESS = 64; // pixels: a latent's smallest side, times eight, of every family
const running = new Map(); // prompt id → onMade
/** What prompts said while the page waited to learn which id its own has: [prompt id, problem]. */
let unclaimed = [];
let asking = 0;

/**
 * Queues a prompt that makes a mask of each picture and keeps it beside the picture.
 * @param subjectId of the Subject node in a prompt @param pictures [{name, width, height}]
 * @param onMade called after every mask, and with a sentence if they could not be queued or made
 * @returns how many masks are on their way
 */
export async function makeMasks(subjectId, folder, size, pictures, onMade) {
  const { output, workflow } = await app.graphToPrompt();
  const train = trainOf(output, subjectId);
  const words = classWordsOf(output, subjectId);
  if (!train) throw new Error(t("mask.no_train"));
  if (!words) throw new Error(t("mask.no_class"));
  const models = ["model", "clip", "vae"].map((name) => train[name]?.[0]).filter((id) => output[id]);
  const prompt = inFrontOf(models, output);
  // deno-lint-ignore personalize/page-texts -- the model reads it, in English
  const text = `a photo of a ${words}`;
  prompt["mask-text"] = node("CLIPTextEncode", { clip: train.clip, text });
  pictures.forEach((picture, number) => addPicture(prompt, train, { words, text, folder, size, ...picture }, number));
  queue({ output: prompt, workflow }, onMade).catch(({ message }) => onMade(message));
  return pictures.length;
}

/** A short prompt may have ended before the answer comes that gives it its id. */
async function queue(prompt, onMade) {
  asking++;
  try {
    const { prompt_id } = await api.queuePrompt(0, prompt);
    running.set(prompt_id, onMade);
    for (const [id, problem] of unclaimed) if (id === prompt_id) onMade(problem);
  } finally {
    if (!--asking) unclaimed = [];
  }
}

function tell(promptId, problem) {
  if (running.has(promptId)) running.get(promptId)(problem);
  else if (asking) unclaimed.push([promptId, problem]);
}

function addPicture(prompt, { model, clip, vae }, { name, width, height, words, text, folder, size }, number) {
  const factor = size / Math.min(width, height);
  const side = (length) => Math.max(FINENESS, FINENESS * Math.round(length * factor / FINENESS));
  const id = (what) => `mask-${number}-${what}`;
  prompt[id("load")] = node("LoadImage", { image: `${folder}/${name}` });
  prompt[id("fit")] = node("ImageScale", {
    image: [id("load"), 0], upscale_method: "area", width: side(width), height: side(height), crop: "disabled" });
  prompt[id("latent")] = node("VAEEncode", { pixels: [id("fit"), 0], vae });
  prompt[id("look")] = node("PersonalizeAttentionOfLatent", {
    model, conditioning: ["mask-text", 0], latent: [id("latent"), 0], words, clip, prompt: text });
  prompt[id("mask")] = node("PersonalizeSubjectMask", { record: [id("look"), 0], image: [id("fit"), 0], words });
  prompt[id("whole")] = node("MaskToImage", { mask: [id("mask"), 0] });
  prompt[id("back")] = node("ImageScale", {
    image: [id("whole"), 0], upscale_method: "bilinear", crop: "disabled",
    width: Math.round(width * Math.min(1, factor)), height: Math.round(height * Math.min(1, factor)) });
  prompt[id("shape")] = node("ImageToMask", { image: [id("back"), 0], channel: "red" });
  prompt[id("save")] = node("PersonalizeSaveMasks", { masks: [id("shape"), 0], folder, picture_files: name });
}

/** A node of a prompt, what is not given as its widgets begin. */
function node(type, inputs) {
  const { required = {}, optional = {} } = globalThis.LiteGraph.registered_node_types[type].nodeData.input;
  const values = Object.entries({ ...required, ...optional }).map(([name, [kind, options]]) => (
    [name, options?.default ?? (Array.isArray(kind) ? kind[0] : options?.options?.[0])]));
  return { class_type: type, inputs: { ...Object.fromEntries(values.filter(([, value]) => value !== undefined)), ...inputs } };
}

/** Inputs of the Train node that the subject goes to, also by way of other nodes. */
function trainOf(output, subjectId) {
  const reached = new Set([subjectId]);
  for (let size = 0; size !== reached.size;) {
    size = reached.size;
    for (const [id, { class_type, inputs }] of Object.entries(output)) {
      if (!Object.values(inputs).some((link) => Array.isArray(link) && reached.has(link[0]))) continue;
      if (class_type === "PersonalizeTrain") return inputs;
      reached.add(id);
    }
  }
  return null;
}

function classWordsOf(output, subjectId) {
  const link = output[subjectId]?.inputs.concept;
  const words = output[link?.[0]]?.inputs.class_words;
  return typeof words === "string" ? words.split(",")[0].trim() : "";
}

api.addEventListener("executed", ({ detail }) => {
  if (detail.output?.personalize_masks) tell(detail.prompt_id, "");
});
api.addEventListener("execution_error", ({ detail }) => tell(detail.prompt_id, detail.exception_message?.trim() ?? ""));
for (const end of ["execution_error", "execution_success"]) {
  api.addEventListener(end, ({ detail }) => running.delete(detail.prompt_id));
}
