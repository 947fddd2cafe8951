/** Drawn pictures in columns of steps and rows of scenes: a prompt from a noise. Knows nothing of the page. */

/** @param previews as of RunHistory @returns {{steps: number[], rows: {key, prompt, noise}[], at(step, key)}} */
export function gridOf(previews) {
  const prompts = new Map();
  const places = new Map();
  for (const preview of previews) {
    const { step, prompt, noise } = preview;
    if (!prompts.has(prompt)) prompts.set(prompt, new Set());
    prompts.get(prompt).add(noise);
    places.set(placeKey(step, rowKey(prompt, noise)), preview);
  }
  const rows = [...prompts].flatMap(([prompt, noises]) => [...noises].sort((a, b) => a - b).map((noise) => (
    { key: rowKey(prompt, noise), prompt, noise, isOneOfMany: noises.size > 1 })));
  return {
    steps: [...new Set(previews.map(({ step }) => step))].sort((a, b) => a - b),
    rows,
    at: (step, key) => places.get(placeKey(step, key)),
  };
}

const rowKey = (prompt, noise) => `${noise} ${prompt}`;
const placeKey = (step, key) => `${step} ${key}`;
