/** Puts the training pictures on DETEX Prompt: two buttons under each keep its pose or its background. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { button, element, setPressed, setText } from "./shared/dom.js";
import { noteForUndo } from "./shared/graphs.js";
import { loadStyle } from "./shared/nodes.js";
import { addPart, placesOf } from "./shared/parts.js";
import { t } from "./shared/texts.js";

const NAME = "kept";
const ATTRIBUTES = ["pose_of", "background_of"]; // widgets: number of a picture, 0 for none

/** The pictures of one node. Its widgets say which file, and what is kept of which picture; the buttons follow them. */
class KeptAttributes {
  #place;
  #questions = 0;
  #shown = "";
  #message = element("p", { class: "pz-message", role: "status", hidden: true });
  #row = element("div", { class: "pz-kept-row", role: "list" });
  #toggles = []; // [{widget, number, toggle: button}]

  constructor(place) {
    this.#place = place;
    this.root = element("div", { class: "pz-theme pz-kept", role: "group", "aria-label": t("detex.label") },
      this.#message, this.#row);
  }

  /** Asks the server again what the file holds, and shows it. */
  async refresh() {
    const turn = ++this.#questions;
    const file = String(this.#place.widget("file")?.value ?? "");
    const found = file ? await picturesOf(file) : { pictures: [], pose_is: "", message: t("detex.no_file") };
    if (turn !== this.#questions) return;
    setText(this.#message, found.message);
    this.#message.hidden = !found.message;
    this.#fill(found);
    this.showKept();
  }

  /** The buttons of what the widgets say are down. */
  showKept() {
    for (const { widget, number, toggle } of this.#toggles) setPressed(toggle, this.#number(widget) === number);
  }

  #fill({ pictures, pose_is: poseIs }) {
    const content = JSON.stringify([poseIs, ...pictures]);
    if (content === this.#shown) return; // so that a button keeps the focus
    this.#shown = content;
    this.#toggles = [];
    this.#row.replaceChildren(...pictures.map((url, index) => this.#item(url, index + 1, poseIs)));
  }

  #item(url, number, poseIs) {
    const words = [poseWord(poseIs), t("detex.background")];
    const buttons = ATTRIBUTES.map((widget, i) => this.#button(widget, number, words[i]));
    return element("div", { class: "pz-kept-item", role: "listitem" },
      element("img", { src: url, alt: t("detex.picture", { number }), draggable: "false" }),
      element("span", { class: "pz-kept-number", "aria-hidden": "true" }, String(number)), ...buttons);
  }

  #button(widget, number, attribute) {
    const label = t("detex.keep", { attribute, number });
    const toggle = button({ class: "pz-button", "aria-pressed": "false", "aria-label": label, title: label,
      onclick: () => this.#press(widget, number) }, attribute);
    this.#toggles.push({ widget, number, toggle });
    return toggle;
  }

  #press(widget, number) {
    this.#place.setWidget(widget, this.#number(widget) === number ? 0 : number);
    this.showKept();
    noteForUndo();
  }

  #number(widget) {
    return Number(this.#place.widget(widget)?.value);
  }
}

/** {pictures: [data URLs], pose_is, message: why there are none, or ""} */
async function picturesOf(file) {
  const failed = (message) => ({ pictures: [], pose_is: "", message });
  try {
    const answer = await api.fetchApi(`/personalize/detex/pictures?${new URLSearchParams({ file })}`, { cache: "no-store" });
    return answer.ok ? await answer.json() : failed(t("tray.server_refused", { status: answer.status }));
  } catch (problem) {
    return failed(problem.message);
  }
}

/** The file's word behind that of a pose, in the page's language where it is one of the paper's. */
const poseWord = (poseIs) => ({ pose: t("detex.pose"), view: t("detex.view") })[poseIs] ?? poseIs;

addPart({
  name: NAME, nodeTypes: ["PersonalizeDetexPrompt"], minHeight: 150, minWidth: 480, outside: true, order: 2, first: true,
  create: keptAttributes });

app.registerExtension({
  name: "personalize.detexPrompt",

  setup() {
    for (const style of ["./shared/theme.css", "./detex/kept.css"]) loadStyle(style, import.meta.url);
  },

  refreshComboInNodes: () => placesOf(NAME).forEach(({ part }) => part.restore()),
});

function keptAttributes(place) {
  const kept = new KeptAttributes(place);
  place.onChange(["file", ...ATTRIBUTES], (name) => (name === "file" ? kept.refresh() : kept.showKept()));
  return { root: kept.root, restore: () => kept.refresh() };
}
