/** What a training will need, before it runs: memory and time, values that fit, and settings that cannot act. */
import { button, element, icon, setText } from "../shared/dom.js";
import { t } from "../shared/texts.js";
import { formatDuration } from "./format.js";

const GIGABYTE = 1e9;

export class EstimateSection {
  root = element("div", { class: "pz-estimate", role: "region", "aria-label": t("estimate.label") });
  #panel;
  #need = element("span", { class: "pz-need" });
  #take = button({ class: "pz-button", onclick: () => this.#takeProposal() });
  #problems = element("ul", { class: "pz-idle" });

  constructor(panel) {
    this.#panel = panel;
    this.root.append(element("div", { class: "pz-row" }, this.#need, this.#take), this.#problems);
  }

  render({ estimate, history }) {
    const { idle, problem, need } = estimate;
    const isOver = Boolean(need && need.memory > need.available);
    this.root.hidden = history.isRunning || !(need || idle.length || problem);
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
    const { place, estimate } = this.#panel;
    for (const [name, value] of proposed(estimate.need)) place.setWidget(name, value);
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
