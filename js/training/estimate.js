/** What a training will need, before it runs: memory and time, values that fit, and settings that cannot act. */
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { button, element, icon, setText } from "../shared/dom.js";
import { chain } from "../shared/nodes.js";
import { t } from "../shared/texts.js";
import { placesIn, signatureOf } from "../shared/upstream.js";
import { formatDuration } from "./format.js";

const WAIT_MS = 800;
const GIGABYTE = 1e9;

/** Sections of the panels of this page, each with the nodes that lead to its own. */
const sections = new Set();
let timer = 0;
let asked = "";

export class EstimateSection {
  root = element("div", { class: "pz-estimate", role: "region", "aria-label": t("estimate.label") });
  #panel;
  #need = element("span", { class: "pz-need" });
  #take = button({ class: "pz-button", onclick: () => this.#takeProposal() });
  #problems = element("ul", { class: "pz-idle" });
  #told = { idle: [], problem: "", need: null };

  constructor(panel) {
    this.#panel = panel;
    this.root.append(element("div", { class: "pz-row" }, this.#need, this.#take), this.#problems);
    sections.add(new WeakRef(this));
    lookSoon();
  }

  get place() {
    return this.#panel.place;
  }

  /** A section is of use while its node is in the graph and does not train. */
  get isShown() {
    return Boolean(this.place.host.graph) && !this.#panel.history.isRunning;
  }

  tell(told) {
    this.#told = told;
    this.render();
  }

  render() {
    const { idle, problem, need } = this.#told;
    const isOver = Boolean(need && need.memory > need.available);
    this.root.hidden = !this.isShown || !(need || idle.length || problem);
    this.root.classList.toggle("pz-over", isOver);
    setText(this.#need, need ? needText(need, isOver) : "");
    const values = proposed(need);
    this.#take.hidden = !values.length;
    this.#take.replaceChildren(icon("check"), ` ${t("estimate.take", { values: shown(values) })}`);
    const said = [problem, ...idle].filter(Boolean);
    this.#problems.replaceChildren(...said.map((sentence) => element("li", {}, sentence)));
    this.#problems.hidden = !said.length;
  }

  #takeProposal() {
    for (const [name, value] of proposed(this.#told.need)) this.place.setWidget(name, value);
    lookSoon();
  }
}

const size = (bytes) => (bytes / GIGABYTE).toFixed(bytes < 10 * GIGABYTE ? 1 : 0);
const proposed = (need) => Object.entries(need?.proposal ?? {}).filter(([name]) => !["memory", "seconds"].includes(name));
const shown = (values) => values.map(([name, value]) => `${name} ${value === true ? t("estimate.on") : value}`).join(", ");

function needText(need, isOver) {
  const values = {
    memory: size(need.memory), available: size(need.available), time: formatDuration(Math.max(1, need.seconds)) };
  return t(isOver ? "estimate.over" : "estimate.fits", values);
}

/** Once, a little after the last change of the graph; nothing where no panel would show it. */
function lookSoon() {
  timer ||= setTimeout(() => {
    timer = 0;
    look();
  }, WAIT_MS);
}

function shownSections() {
  for (const held of sections) if (!held.deref()) sections.delete(held);
  return [...sections].map((held) => held.deref()).filter((section) => section?.isShown);
}

async function look() {
  const open = shownSections();
  if (!open.length) return;
  const state = `${open.map(({ place }) => place.host.id)} ${signatureOf([...placesIn(app.rootGraph ?? app.graph)])}`;
  if (state === asked) return;
  asked = state;
  const { output } = await app.graphToPrompt();
  const ids = Object.keys(output);
  for (const section of open) {
    const node = ids.find((id) => section.place.isExecution(id));
    if (node) section.tell(await ask(output, node));
  }
}

async function ask(prompt, node) {
  const body = JSON.stringify({ prompt, node });
  const answer = await api.fetchApi("/personalize/estimate", {
    method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => null);
  return answer?.ok ? answer.json() : { idle: [], problem: "", need: null };
}

app.registerExtension({
  name: "personalize.estimate",

  setup() {
    chain(app.canvas, "onDrawForeground", lookSoon);
    document.addEventListener("input", lookSoon, true); // typing in a text box draws no canvas
  },
});
