/** Shows on the node the text that a run gave: where a file is, what to write in a prompt, a prompt, a list of tokens. */
import { app } from "../../scripts/app.js";
import { loadStyle } from "./shared/nodes.js";
import { addPart } from "./shared/parts.js";
import { t } from "./shared/texts.js";

const NODE_TYPES = [
  "PersonalizeSaveConcept", "PersonalizePromptTokens", "PersonalizeManageSteps", "PersonalizeOrthogonalize",
  "PersonalizeSaveViCo", "PersonalizeExportStep", "PersonalizeDetexPrompt",
];
/** node type → what a widget is set back to when a run has done what it asked for */
const AFTERWARDS = { PersonalizeManageSteps: { operation: "list" } };
const WRAPPED = ["PersonalizeDetexPrompt"]; // node types of a text without columns
const MOST_KEPT = 20_000; // letters of a result in the workflow

const textOf = (output) => (output?.text ? [output.text].flat().join("\n") : "");

addPart({
  name: "result", nodeTypes: NODE_TYPES, minHeight: 80, outside: true, order: 3, create: textResult,
  rememberedOf: textOf });

app.registerExtension({
  name: "personalize.textResult",

  setup() {
    loadStyle("./shared/text.css", import.meta.url);
  },
});

function textResult(place) {
  const root = document.createElement("textarea");
  root.className = "pz-text";
  root.classList.toggle("pz-wrapped", WRAPPED.includes(place.node.comfyClass));
  root.readOnly = true;
  root.placeholder = t("result.empty");
  root.setAttribute("aria-label", t("result.label"));
  return {
    root,
    restore() {
      root.value ||= place.kept("result") ?? "";
    },
    executed(output) {
      setBack(place);
      if (!textOf(output)) return;
      root.value = textOf(output);
      place.keep("result", keptPart(root.value));
    },
    remember: () => root.value,
    recall(text) {
      root.value = text;
      place.keep("result", keptPart(text));
    },
  };
}

function setBack(place) {
  for (const [name, value] of Object.entries(AFTERWARDS[place.node.comfyClass] ?? {})) {
    if (place.widget(name)?.value !== value) place.setWidget(name, value);
  }
}

function keptPart(text) {
  const left = text.length - MOST_KEPT;
  return left > 0 ? `${text.slice(0, MOST_KEPT)}\n${t("result.cut", { count: left })}` : text;
}
