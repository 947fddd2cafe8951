/** The section of the training panel with the chart, its views and its legend. */
import { button, element, setPressed, setText } from "../shared/dom.js";
import { listed, t } from "../shared/texts.js";
import { lineColor, TrainingChart } from "./chart.js";
import { formatNumber } from "./format.js";
import { chartData } from "./lines.js";

const VIEWS = ["loss", "gradients", "rate"];

export class ChartSection {
  root;
  #panel;
  #view = "loss";
  #isLogarithmic = false;
  #cursor = null;
  #plot = element("div", { class: "pz-plot" });
  #empty = element("div", { class: "pz-empty" });
  #figure = element("div", { class: "pz-chart", onkeydown: (event) => this.#onKey(event) }, this.#plot, this.#empty);
  #legend = element("div", { class: "pz-legend", role: "group", "aria-label": t("chart.lines") });
  #views = VIEWS.map((view) => button({
    class: "pz-button", title: t(`view.${view}_title`), "data-view": view,
    onclick: () => this.#show(view) }, t(`view.${view}`)));
  #logarithmic = button({
    class: "pz-button", title: t("chart.logarithmic_title"),
    onclick: () => this.#toggleLogarithmic() }, t("chart.logarithmic"));
  #chart = new TrainingChart(this.#plot, (index) => this.#onCursor(index));

  constructor(panel) {
    this.#panel = panel;
    this.root = element("div", { class: "pz-section pz-chart-section" },
      element("div", { class: "pz-group", role: "group", "aria-label": t("chart.label") }, ...this.#views, this.#logarithmic),
      this.#figure, this.#legend);
  }

  get legendHeight() {
    return this.#legend.offsetHeight;
  }

  render({ history: { records, isRunning } }) {
    const data = chartData(this.#view, records);
    const isEmpty = data.lines.length === 0 || records.length === 0;
    const isLogarithmic = this.#view === "gradients" || (this.#view === "loss" && this.#isLogarithmic);
    if (!isEmpty) this.#chart.show(data, isLogarithmic);
    this.#plot.hidden = isEmpty;
    this.#empty.hidden = !isEmpty;
    setText(this.#empty, emptyText(records.length, isRunning));
    this.#figure.setAttribute("aria-label", chartSummary(t(`view.${this.#view}`), data));
    this.#offerKeys(isEmpty ? [] : data.steps);
    for (const view of this.#views) setPressed(view, view.dataset.view === this.#view);
    setPressed(this.#logarithmic, isLogarithmic);
    this.#logarithmic.disabled = this.#view !== "loss";
    this.#renderLegend(isEmpty ? [] : data.lines);
  }

  /** The theme's colours are others now. */
  refresh() {
    this.#chart.refresh();
  }

  #renderLegend(lines) {
    const names = lines.map((line) => line.name);
    const shown = [...this.#legend.children].map((entry) => entry.dataset.line);
    if (names.join("\n") !== shown.join("\n")) {
      this.#legend.replaceChildren(...lines.map((line) => this.#legendEntry(line)));
    }
    lines.forEach(({ name, values }, index) => {
      const entry = this.#legend.children[index];
      const value = this.#cursor === null ? lastMeasured(values) : values[this.#cursor];
      setText(entry.lastElementChild, formatNumber(value));
      setPressed(entry, this.#chart.isLineShown(name));
    });
  }

  #legendEntry({ name, look, color }) {
    const swatch = element("span", { class: `pz-swatch pz-${look}`, style: `background: var(${lineColor(color)})` });
    return button(
      { "data-line": name, title: t("chart.toggle_line"), onclick: () => this.#toggleLine(name) },
      swatch, element("span", {}, name), element("span", { class: "pz-value" }));
  }

  #toggleLine(name) {
    this.#chart.setLineShown(name, !this.#chart.isLineShown(name));
    this.render(this.#panel);
  }

  #toggleLogarithmic() {
    this.#isLogarithmic = !this.#isLogarithmic;
    this.render(this.#panel);
  }

  #show(view) {
    this.#view = view;
    this.#cursor = null;
    this.render(this.#panel);
  }

  /** With steps to read, arrow keys go from one to the next as on a slider, whose text is what was measured there. */
  #offerKeys(steps) {
    const attributes = steps.length
      ? { role: "slider", tabindex: "0", "aria-readonly": "true", "aria-valuemin": steps[0], "aria-valuemax": steps.at(-1) }
      : { role: "img" };
    for (const name of ["tabindex", "aria-readonly", "aria-valuemin", "aria-valuemax"]) {
      if (!(name in attributes)) this.#figure.removeAttribute(name);
    }
    for (const [name, value] of Object.entries(attributes)) this.#figure.setAttribute(name, value);
    if (steps.length && !this.#figure.hasAttribute("aria-valuenow")) this.#figure.setAttribute("aria-valuenow", steps.at(-1));
  }

  #onKey(event) {
    const { steps, lines } = chartData(this.#view, this.#panel.history.records);
    const last = steps.length - 1;
    const now = this.#cursor ?? last;
    const tenth = Math.max(1, Math.round(last / 10));
    const targets = {
      ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - tenth, PageDown: now + tenth, Home: 0, End: last };
    if (!steps.length || !Object.hasOwn(targets, event.key)) return;
    event.preventDefault();
    const index = Math.min(Math.max(targets[event.key], 0), last);
    this.#chart.pointAt(index);
    this.#onCursor(index);
    const values = lines.map(({ name, values: all }) => `${name} ${formatNumber(all[index])}`);
    this.#figure.setAttribute("aria-valuenow", steps[index]);
    this.#figure.setAttribute("aria-valuetext", t("chart.at_step", { step: steps[index], values: listed(values) }));
  }

  #onCursor(index) {
    if (index === this.#cursor) return;
    this.#cursor = index;
    this.#renderLegend(chartData(this.#view, this.#panel.history.records).lines);
  }
}

function emptyText(steps, isRunning) {
  if (steps) return t("chart.not_measured");
  if (isRunning) return t("chart.waiting");
  return t("chart.empty");
}

function chartSummary(view, { steps, lines }) {
  const values = lines.map(({ name, values: all }) => `${name} ${formatNumber(lastMeasured(all))}`);
  if (!steps.length) return t("chart.no_steps", { view });
  return t("chart.summary", { view, first: steps[0], last: steps.at(-1), values: listed(values) });
}

const lastMeasured = (values) => values.findLast((value) => value !== undefined);
