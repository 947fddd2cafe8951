/** Says beneath a node, before Run, that a prompt holds none of the words that it should, and puts the right one in. */
import { app } from "../../scripts/app.js";
import { lookAgain, onGraphChange } from "./shared/changes.js";
import { linkInto, noteForUndo } from "./shared/graphs.js";
import { chain, loadStyle } from "./shared/nodes.js";
import { destinations, sourceOf, typedValue } from "./shared/upstream.js";
import { idleSettings } from "./prompts/idle.js";
import { judgePreview, judgePrompt, judgeSought, judgeTemplates, judgeUnknown } from "./prompts/judge.js";
import { whenTold, wordsOfClip, wordsOfConcept, wordsOfSubject } from "./prompts/known.js";
import { placeMarks, showMarks } from "./prompts/marks.js";

const NAMES_WORDS = ["PersonalizeConcept", "PersonalizeLoadConcept"];
/** node type → inputs that hold words of a prompt */
const WORDS = {
  PersonalizeEncodeWithSpans: ["words"], PersonalizeRecordAttention: ["words"], PersonalizeAttentionOfLatent: ["words"],
  PersonalizeSubjectMask: ["words"], PersonalizeApplyViCo: ["words", "words_2"], PersonalizeSelfAttentionSwap: ["words"],
  PersonalizeOrthogonalize: ["words"] };
/** node types that look for their words in the prompt of what arrives at "conditioning" */
const SEARCHES = ["PersonalizeOrthogonalize", "PersonalizeAttentionOfLatent"];

app.registerExtension({
  name: "personalize.prompts",

  setup() {
    for (const style of ["./shared/theme.css", "./prompts/marks.css"]) loadStyle(style, import.meta.url);
    chain(app.canvas, "onDrawForeground", placeMarks);
    onGraphChange((places) => showMarks(look(places)));
    whenTold(lookAgain);
  },
});

/** node → what is to be said there. */
function look(places) {
  const said = new Map();
  if (!places.some(({ node }) => node.comfyClass?.startsWith("Personalize"))) return said;
  for (const place of places) {
    sayIdle(said, place);
    saySought(said, place);
  }
  const everywhere = wordsEverywhere(places);
  for (const place of places) {
    for (const { name, judge } of texts(place, everywhere)) {
      const typed = typedValue(place, name);
      const problem = typeof typed?.value === "string" && judge(typed.value);
      if (problem) say(said, typed, problem);
    }
  }
  return said;
}

function wordsEverywhere(places) {
  const found = places.filter(({ node }) => NAMES_WORDS.includes(node.comfyClass))
    .map((place) => wordsOfConcept({ ...place, slot: 0 }));
  return found.includes(null) ? null : found.flat().map(({ word }) => word);
}

/** The texts of a node, {name, judge(text)}; none where the page cannot tell which words are right. */
function texts(place, everywhere) {
  const { comfyClass: type } = place.node;
  if (type === "PersonalizeTrain") return previewPrompts(place);
  if (type === "PersonalizeTrainingPrompts") return [{ name: "prompts", judge: (text) => judgeTemplates(text, asKnown(everywhere)) }];
  const fields = everywhere ? (WORDS[type] ?? []).map((name) => ({ name, judge: (text) => judgeUnknown(text, everywhere, []) })) : [];
  return [...prompts(place, everywhere), ...fields];
}

const asKnown = (words) => (words ?? []).map((word) => ({ word, what: "" }));

function previewPrompts(place) {
  const known = wordsOfSubject(sourceOf(place, "subject"));
  const isDrawn = Number(typedValue(place, "preview_every")?.value) > 0;
  return known && isDrawn ? [{ name: "preview_prompt", judge: (text) => judgePreview(text, known) }] : [];
}

/** Of stock and other packs' encoders, too: they have a CLIP, and texts of several lines. */
function prompts(place, everywhere) {
  const names = promptNames(place.node);
  if (!names.length || !isUsed(place)) return [];
  const known = wordsKnownTo(place);
  return known ? names.map((name) => ({ name, judge: (text) => judgePrompt(text, known, everywhere ?? []) })) : [];
}

function promptNames(node) {
  if (["PersonalizeEncodeWithSpans", "PersonalizePromptTokens"].includes(node.comfyClass)) return ["prompt"];
  const isEncoder = node.inputs?.some(({ type }) => type === "CLIP") && node.outputs?.some(({ type }) => type === "CONDITIONING");
  if (!isEncoder || node.comfyClass?.startsWith("Personalize")) return [];
  return (node.widgets ?? []).filter(({ type }) => type === "customtext").map(({ name }) => name);
}

function wordsKnownTo(place) {
  const clip = place.node.inputs.find(({ type }) => type === "CLIP");
  const ofClip = wordsOfClip(sourceOf(place, clip.name));
  const own = wordsOfConcept(sourceOf(place, "concept"));
  return ofClip && own && [...ofClip, ...own];
}

/** Whether it goes anywhere but into negative prompts. */
function isUsed(place) {
  if (place.node.comfyClass === "PersonalizePromptTokens") return true;
  const names = destinations(place, "CONDITIONING");
  return names.length > 0 && !names.every((name) => /negative/i.test(name));
}

function sayIdle(said, place) {
  const { node } = place;
  if (!node.comfyClass?.startsWith("Personalize")) return;
  const isLinked = (name) => Boolean(linkInto(node, node.inputs?.findIndex((input) => input.name === name)));
  for (const sentence of idleSettings(node.comfyClass, (name) => typedValue(place, name)?.value, isLinked)) {
    say(said, place, { sentence, fixes: [] });
  }
}

function saySought(said, place) {
  const source = SEARCHES.includes(place.node.comfyClass) && sourceOf(place, "conditioning");
  const prompt = source && typedValue(source, promptNames(source.node)[0] ?? "prompt");
  const words = typedValue(place, "words")?.value;
  if (typeof prompt?.value !== "string" || typeof words !== "string") return;
  const problem = judgeSought(prompt.value, words, place.node.title);
  if (problem) say(said, prompt, problem);
}

function say(said, { widget, node, path }, problem) {
  const within = [...path, node];
  const shownAt = within.find(({ graph }) => graph === app.canvas.graph) ?? within[0];
  const apply = (text) => write(node, widget, text);
  const before = said.get(shownAt) ?? [];
  if (!before.some(({ sentence }) => sentence === problem.sentence)) said.set(shownAt, [...before, { ...problem, apply }]);
}

/** As typing does, so that it can be undone. */
function write(node, widget, text) {
  widget.value = text;
  widget.callback?.(text);
  node.setDirtyCanvas?.(true, true);
  noteForUndo();
  lookAgain();
}
