/** Made-up words in the text of a prompt, as nodes/text/placeholders.py finds them, and what may have been meant. */

const MARKS = "\\u0300-\\u036f"; // combining accents, which belong to the letter before them
const composed = (text) => text.normalize("NFC");
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
const TAG = /<\w+:[^<>]*>/g; // <lora:my-dog:1>, which other packs read
const IN_BRACKETS = /<[^<>:,\s]+>/g;

/** "<my-dog>" → "my-dog" */
export const bare = (word) => word.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");

function pattern(word) {
  const before = /^[\p{L}\p{N}_]/u.test(word) ? `(?<![\\p{L}\\p{N}_${MARKS}])` : "";
  const after = /[\p{L}\p{N}_]$/u.test(word) ? `(?![\\p{L}\\p{N}_${MARKS}]|-\\d)` : "";
  return new RegExp(`${before}${escaped(word)}${after}`, "giu");
}

/** Whether a whole word stands in a text, in any capitals. */
export const holds = (text, word) => pattern(composed(word)).test(composed(text).replace(TAG, " "));

export const replaced = (text, word, by) => composed(text).replace(pattern(composed(word)), () => by);

/** Words in angle brackets that are none of those. */
export function strangers(text, words) {
  const known = words.map((word) => composed(word).toLowerCase());
  const found = composed(text).replace(TAG, " ").match(IN_BRACKETS) ?? [];
  return [...new Set(found)].filter((each) => !known.includes(each.toLowerCase()));
}

/** {written, meant}: a word of the text that is one of `words` but for brackets or two letters; null if there is none. */
export function nearMiss(text, words) {
  for (const written of composed(text).split(/[\s,.;:!?()]+/u)) {
    const own = bare(written).toLowerCase();
    const meant = own && words.find((word) => isNear(own, bare(word).toLowerCase()));
    if (meant) return { written, meant };
  }
  return null;
}

/** The word most like a written one. */
export function closest(written, words) {
  const distances = words.map((word) => distance(bare(written).toLowerCase(), bare(word).toLowerCase()));
  return words[distances.indexOf(Math.min(...distances))];
}

function isNear(one, other) {
  if (one === other) return true;
  const most = other.length > 5 ? 2 : 1;
  return other.length > 3 && Math.abs(one.length - other.length) <= most && distance(one, other) <= most;
}

/** Letters to change, put in or leave out, two exchanged neighbours counting once. */
function distance(one, other) {
  const rows = [Array.from({ length: other.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= one.length; i += 1) {
    rows.push([i]);
    for (let j = 1; j <= other.length; j += 1) {
      const change = one[i - 1] === other[j - 1] ? 0 : 1;
      let least = Math.min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + change);
      const isExchange = i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1];
      if (isExchange) least = Math.min(least, rows[i - 2][j - 2] + 1);
      rows[i].push(least);
    }
  }
  return rows[one.length][other.length];
}
