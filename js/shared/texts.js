/**
 * Texts of the page in its language: `t("tray.count", { count: 3 })`.
 *
 * They are in locales/<language>/main.json under "personalize", and what a language lacks is shown in English. {name} in a
 * text becomes the value of that name. A text that depends on a number has a form for each of the language's plural
 * categories ("one", "other", …), chosen by `count`.
 */
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const ENGLISH = "en";

let language = "";
/** {language: {section: {key: text or {category: text}}}} of English and the page's language */
let texts = {};

/** @param key section and key, as "tray.count" @param values {name: value} for the {name} in the text */
export function t(key, values = {}) {
  const [section, name] = key.split(".");
  const found = [language, ENGLISH].find((candidate) => texts[candidate]?.[section]?.[name] !== undefined);
  if (found === undefined) return key;
  const text = texts[found][section][name];
  const form = typeof text === "string" ? text : formOf(text, found, values.count);
  return form.replace(/\{(\w+)\}/g, (hole, value) => values[value] ?? hole);
}

/** "a, b" or "a、b": as the language separates what it lists. */
export const listed = (items) => items.join(t("list.separator"));

const formOf = (forms, of, count) => forms[new Intl.PluralRules(of).select(count)] ?? forms.other;

/** Fetches the texts of the page's language, unless they are there. */
async function follow() {
  const wanted = app.extensionManager?.setting?.get("Comfy.Locale") || ENGLISH;
  if (wanted === language) return;
  try {
    const answer = await api.fetchApi(`/personalize/texts/${encodeURIComponent(wanted)}`);
    texts = await answer.json();
    language = wanted;
  } catch (problem) {
    console.error(`Personalize: the page's texts could not be fetched: ${problem.message}`);
  }
}

// What imports this module waits for its texts. After a change of language ComfyUI awaits this hook and makes every node anew.
app.registerExtension({ name: "personalize.texts", refreshComboInNodes: follow });
await follow();
