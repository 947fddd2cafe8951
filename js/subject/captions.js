/** Captions typed at Subject's input `captions`, one line a picture, which replace those in files beside the pictures. */
const FILEWORDS = "[filewords]"; // as nodes/text/prompts.py

const linesOf = (text) => (text.trim() ? text.trimEnd().split(/\r\n|\r|\n/) : []);

/** Whether the captions that count are those in files: nothing is typed, or one line that frames them all. */
export function areInFiles(typed) {
  const lines = linesOf(typed);
  return !lines.length || (lines.length === 1 && lines[0].includes(FILEWORDS));
}

/** The typed caption of the picture at that place. */
export const typedCaption = (typed, place) => linesOf(typed)[place] ?? "";

/** What is typed, with another caption at that place. */
export function withCaption(typed, place, text, count) {
  const lines = linesOf(typed);
  while (lines.length < count) lines.push("");
  lines[place] = text;
  return lines.join("\n");
}
