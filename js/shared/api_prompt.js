/** Prompts in ComfyUI's API format: {id: {class_type, inputs}}. */

/** These nodes of a prompt and all that they are made of. @returns a prompt */
export function inFrontOf(ids, prompt) {
  const found = new Set(ids);
  for (const id of found) {
    for (const value of Object.values(prompt[id].inputs ?? {})) {
      if (Array.isArray(value) && prompt[value[0]]) found.add(String(value[0]));
    }
  }
  return Object.fromEntries([...found].map((id) => [id, prompt[id]]));
}
