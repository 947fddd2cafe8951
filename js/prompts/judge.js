/** What is wrong with a text that should hold a word: {sentence, fixes: [{label, text}]}, or null. */
import { t } from "../shared/texts.js";
import { closest, holds, nearMiss, replaced, strangers } from "./words.js";

const SLOT = "{}";
const MOST_NAMED = 3;

/**
 * A prompt behind concepts.
 * @param text of the prompt @param known words that its encoder knows, {word, what} @param everywhere words of the graph
 */
export function judgePrompt(text, known, everywhere) {
  if (!text.trim() || !known.length || /embedding:/i.test(text)) return null;
  const words = known.map(({ word }) => word);
  const unknown = judgeUnknown(text, words, everywhere);
  if (unknown) return unknown;
  if (words.some((word) => holds(text, word))) return null;
  return { sentence: t("prompt.without", { words: oneOf(words) }), fixes: waysToPut(text, known) };
}

/** A text of words, of which those in brackets must be known. */
export function judgeUnknown(text, words, everywhere) {
  const [stranger] = strangers(text, words);
  if (!stranger || !words.length) return null;
  if (everywhere.some((word) => word.toLowerCase() === stranger.toLowerCase())) {
    return { sentence: t("prompt.not_here", { word: stranger }), fixes: [] };
  }
  const meant = closest(stranger, words);
  const sentence = t("prompt.unknown", { word: stranger, words: oneOf(words) });
  return { sentence, fixes: [writing(meant, stranger, text)] };
}

/** A prompt in which a node looks for words, divided by commas; a made-up word may stand there as its embedding. */
export function judgeSought(text, words, node) {
  const sought = words.split(",").map((word) => word.trim()).filter((word) => word && !word.startsWith("<"));
  const missing = sought.find((word) => !holds(text, word));
  if (!text.trim() || !missing) return null;
  return { sentence: t("prompt.sought", { word: missing, node }), fixes: [adding(missing, text)] };
}

/** A preview's prompt, in which {} is the word. */
export const judgePreview = (text, known) => (text.includes(SLOT) ? null : judgePrompt(text, known, []));

/** Prompts to train with, one a line, each with one {}. */
export function judgeTemplates(text, known) {
  const lines = text.split("\n");
  const wrong = lines.findIndex((line) => isTemplate(line) && slots(line) !== 1);
  if (wrong < 0) return null;
  const line = lines[wrong];
  const sentence = t("prompt.slots", { line: wrong + 1, count: slots(line), slot: SLOT });
  const word = known.map((each) => each.word).find((each) => holds(line, each));
  const fix = word && { label: t("prompt.write", { word: SLOT, written: word }),
    text: lines.with(wrong, replaced(line, word, SLOT)).join("\n") };
  return { sentence, fixes: fix ? [fix] : [] };
}

const isTemplate = (line) => line.trim() && !line.trim().startsWith("#") && !/^\[[\w -]+\]$/.test(line.trim());
const slots = (line) => line.replaceAll("[name]", SLOT).split(SLOT).length - 1;

function waysToPut(text, known) {
  const words = known.map(({ word }) => word);
  const near = nearMiss(text, words);
  if (near) return [writing(near.meant, near.written, text)];
  const named = known.find(({ what }) => what && holds(text, what));
  if (named) return [writing(named.word, named.what, text)];
  return words.slice(0, MOST_NAMED).map((word) => adding(word, text));
}

const writing = (word, written, text) => (
  { label: t("prompt.write", { word, written }), text: replaced(text, written, word) });

const adding = (word, text) => ({ label: t("prompt.add", { word }), text: `${text.trimEnd()}, ${word}` });

function oneOf(words) {
  const named = words.slice(0, MOST_NAMED).reduce((first, last) => t("prompt.or", { first, last }));
  const more = words.length - MOST_NAMED;
  return more > 0 ? t("prompt.or_more", { words: named, more }) : named;
}
