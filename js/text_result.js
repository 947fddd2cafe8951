/** Shows on the node the text that a run gave: where a file is, what to write in a prompt, a list of tokens. */
import { app } from "../../scripts/app.js";
import { chain, loadStyle, takePlaceOfFormer } from "./shared/nodes.js";
import { t } from "./shared/texts.js";

const NODE_TYPES = [
  "PersonalizeSaveConcept", "PersonalizePromptTokens", "PersonalizeManageSteps", "PersonalizeOrthogonalize",
  "PersonalizeSaveViCo",
];
const MIN_HEIGHT = 80;

app.registerExtension({
  name: "personalize.textResult",

  setup() {
    loadStyle("./shared/text.css", import.meta.url);
  },

  nodeCreated(node) {
    if (NODE_TYPES.includes(node.comfyClass)) attach(node);
  },
});

function attach(node) {
  const root = document.createElement("textarea");
  root.className = "pz-text";
  root.readOnly = true;
  root.placeholder = t("result.empty");
  root.setAttribute("aria-label", t("result.label"));
  const widget = node.addDOMWidget("result", "PERSONALIZE_TEXT", root, {
    serialize: false, // not into the prompt
    hideOnZoom: false,
    hideInPanel: true,
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false; // not into the saved workflow
  chain(node, "onAdded", () => takePlaceOfFormer(node, root, ".pz-text"));
  chain(node, "onExecuted", (output) => {
    if (output?.text) root.value = [output.text].flat().join("\n");
  });
}
