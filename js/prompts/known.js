/** Which made-up words a wire brings, as far as the page can tell: [{word, what: class words}], null where it cannot. */
import { api } from "../../../scripts/api.js";
import { sourceOf, typedValue } from "../shared/upstream.js";

const DEEPEST = 200;
/** embedding → {placeholder, class_words}, null while it is asked for */
const ofFiles = new Map();
let onAnswer = () => {};

/** Calls `react` when the server has told what a file's word is. */
export function whenTold(react) {
  onAnswer = react;
}

export function wordsOfClip(source, depth = 0) {
  if (!source || depth > DEEPEST) return [];
  const clips = (source.node.inputs ?? []).filter(({ type }) => type === "CLIP");
  if (source.node.comfyClass === "PersonalizeApplyConcept") {
    return together(wordsOfConcept(sourceOf(source, "concept")), wordsOfClip(sourceOf(source, "clip"), depth + 1));
  }
  if (clips.length > 1) return null;
  return clips.length ? wordsOfClip(sourceOf(source, clips[0].name), depth + 1) : [];
}

export function wordsOfConcept(source, depth = 0) {
  if (!source) return [];
  switch (source.node.comfyClass) {
    case "PersonalizeConcept": return asWord(typedText(source, "placeholder"), typedText(source, "class_words"));
    case "PersonalizeLoadConcept": return wordOfFile(source);
    case "PersonalizeTrain": return wordsOfSubject(sourceOf(source, "subject"), depth + 1);
    case "PersonalizeCoReTestTime": return wordsOfConcept(sourceOf(source, "concept"), depth + 1);
    default: return null;
  }
}

export function wordsOfSubject(source, depth = 0) {
  if (!source || depth > DEEPEST) return [];
  switch (source.node.comfyClass) {
    case "PersonalizeSubject": return together(
      wordsOfSubject(sourceOf(source, "previous"), depth + 1), wordsOfConcept(sourceOf(source, "concept"), depth + 1));
    case "PersonalizePriorPictures":
    case "PersonalizeTrain": return wordsOfSubject(sourceOf(source, "subject"), depth + 1);
    default: return null;
  }
}

const typedText = (source, name) => {
  const value = typedValue(source, name)?.value;
  return typeof value === "string" ? value.trim() : undefined;
};

const asWord = (word, what) => (word === undefined ? null : word ? [{ word, what: what ?? "" }] : []);

function wordOfFile(source) {
  const word = typedText(source, "placeholder");
  const what = typedText(source, "class_words");
  if (word) return asWord(word, what);
  const file = typedText(source, "embedding");
  if (word === undefined || !file) return null;
  if (!ofFiles.has(file)) ask(file);
  const told = ofFiles.get(file);
  return told ? asWord(told.placeholder, what || told.class_words) : null;
}

async function ask(file) {
  ofFiles.set(file, null);
  const answer = await api.fetchApi(`/personalize/concept?embedding=${encodeURIComponent(file)}`).catch(() => null);
  if (!answer?.ok) return;
  const found = await answer.json();
  if (!found.placeholder) return;
  ofFiles.set(file, found);
  onAnswer();
}

const together = (one, other) => (one && other ? [...one, ...other] : null);
