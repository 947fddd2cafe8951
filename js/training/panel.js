/** What is drawn on a Train node: state, commands, chart, messages and previews of its run. */
import { lineColor, TrainingChart } from "./chart.js";
import { button, element, icon, setPressed, setText } from "../shared/dom.js";
import { formatDuration, formatNumber } from "./format.js";
import { RunHistory } from "./history.js";
import { chartData } from "./lines.js";
import { PreviewStrip, PreviewViewer } from "./previews.js";
import { sendCommand } from "./server.js";

const REDRAW_EVERY_MS = 100;
const VIEWS = {
  loss: { label: "Loss", title: "Total loss and its terms, as weighted in the total" },
  gradients: {
    label: "Gradients",
    title: "Length of each term's gradient on each trained part: one near zero does nothing, a far larger one rules" },
  rate: { label: "Rate", title: "Learning rate of each trained part" },
};
const COMMANDS = [
  { command: "stop", icon: "stop-circle", label: "Stop", title: "Stop after this step and keep the work" },
  { command: "save", icon: "save", label: "Save now", title: "Save the embedding of this step" },
  { command: "sample", icon: "image", label: "Sample now", title: "Draw a preview picture at this step" },
];

let viewer = null;

export class TrainingPanel {
  history = new RunHistory();
  root = element("div", { class: "pz-theme pz-panel", role: "region", "aria-label": "Training" });
  #node;
  #view = "loss";
  #isLogarithmic = false;
  #cursor = null;
  #note = "";
  #isStopping = false;
  #redrawTimer = 0;
  #parts = {};
  #chart;
  #strip;

  /** @param node {getUseStep(): number, setUseStep(step)} */
  constructor(node) {
    this.#node = node;
    this.#strip = new PreviewStrip((step) => this.#pick(step), () => this.setUseStep(0));
    this.#build();
    this.#chart = new TrainingChart(this.#parts.chart, (index) => this.#onCursor(index));
    this.render();
  }

  useStep() {
    return this.#node.getUseStep();
  }

  setUseStep(step) {
    this.#node.setUseStep(step);
    this.render();
  }

  /** Change the history and show it; many changes in a short time are drawn once. */
  update(change) {
    change(this.history);
    if (!this.history.isRunning) this.#forgetCommands();
    this.#redrawTimer ||= setTimeout(() => this.render(), REDRAW_EVERY_MS);
  }

  /** Draw everything now. */
  render() {
    clearTimeout(this.#redrawTimer);
    this.#redrawTimer = 0;
    this.#renderState();
    this.#renderCommands();
    this.#renderMessages();
    this.#renderChart();
    this.#strip.render(this.history, this.useStep());
  }

  /** The theme's colours are others now. */
  refreshColors() {
    this.#chart.refresh();
  }

  #build() {
    const parts = this.#parts;
    parts.state = element("span", { class: "pz-state" });
    parts.figures = element("span", { class: "pz-figures" });
    parts.progress = element("progress", { max: "1", value: "0", "aria-label": "Training progress" });
    parts.commands = COMMANDS.map(({ command, title, label, icon: name }) => button({
      class: "pz-button", title, "data-command": command, onclick: () => this.#send(command) }, icon(name), " ", label));
    parts.views = Object.entries(VIEWS).map(([view, { label, title }]) => button(
      { class: "pz-button", title, "data-view": view, onclick: () => this.#show(view) }, label));
    parts.logarithmic = button({
      class: "pz-button", title: "Logarithmic axis for the losses", onclick: () => this.#toggleLogarithmic() }, "log");
    parts.error = element("div", { class: "pz-error", role: "alert" });
    parts.message = element("div", { class: "pz-message", role: "status" });
    parts.chart = element("div", { class: "pz-plot" });
    parts.empty = element("div", { class: "pz-empty" });
    parts.legend = element("div", { class: "pz-legend", role: "group", "aria-label": "Lines of the chart" });
    parts.figure = element("div", { class: "pz-chart", role: "img" }, parts.chart, parts.empty);
    this.root.append(
      element("div", { class: "pz-row" }, parts.state, parts.figures), parts.progress, parts.error, parts.message,
      element("div", { class: "pz-row" },
        element("div", { class: "pz-group", role: "group", "aria-label": "Commands" }, ...parts.commands),
        element("div", { class: "pz-group", role: "group", "aria-label": "Chart" }, ...parts.views, parts.logarithmic)),
      parts.figure, parts.legend, this.#strip.root);
  }

  #renderState() {
    const { history } = this;
    const last = history.records.at(-1);
    setText(this.#parts.state, this.#stateText());
    const figures = last ? [`loss ${formatNumber(last.loss)}`] : [];
    const left = history.phase === "training" ? formatDuration(last?.seconds_left) : "";
    if (left) figures.push(`${left} left`);
    setText(this.#parts.figures, figures.join(" · "));
    this.#parts.progress.value = history.total ? Math.min(history.step / history.total, 1) : 0;
    this.#parts.progress.hidden = !last && !history.isRunning;
  }

  #stateText() {
    const { history } = this;
    if (history.phase === "preparing") return "Preparing…";
    if (!history.step) return history.isRunning ? `Step 0 of ${history.total}` : history.run;
    const place = `Step ${history.step} of ${history.total || history.step}`;
    if (history.isRunning) return this.#isStopping ? `${place}, stopping…` : place;
    return `${history.run}: ${place}${history.isUnfinished ? ", stopped" : ""}`;
  }

  #renderCommands() {
    const isOff = this.history.phase !== "training" || this.#isStopping;
    for (const command of this.#parts.commands) command.disabled = isOff;
  }

  #renderMessages() {
    const { error, message } = this.history;
    setText(this.#parts.error, error);
    this.#parts.error.hidden = !error;
    const said = error ? "" : message || this.#note;
    setText(this.#parts.message, said);
    this.#parts.message.hidden = !said;
  }

  #renderChart() {
    const { records, isRunning } = this.history;
    const data = chartData(this.#view, records);
    const isEmpty = data.lines.length === 0 || records.length === 0;
    const isLogarithmic = this.#view === "gradients" || (this.#view === "loss" && this.#isLogarithmic);
    if (!isEmpty) this.#chart.show(data, isLogarithmic);
    this.#parts.chart.hidden = isEmpty;
    this.#parts.empty.hidden = !isEmpty;
    setText(this.#parts.empty, emptyText(records.length, isRunning));
    this.#parts.figure.setAttribute("aria-label", chartSummary(VIEWS[this.#view].label, data));
    for (const view of this.#parts.views) setPressed(view, view.dataset.view === this.#view);
    setPressed(this.#parts.logarithmic, isLogarithmic);
    this.#parts.logarithmic.disabled = this.#view !== "loss";
    this.#renderLegend(isEmpty ? [] : data.lines);
  }

  #renderLegend(lines) {
    const { legend } = this.#parts;
    const names = lines.map((line) => line.name);
    const shown = [...legend.children].map((entry) => entry.dataset.line);
    if (names.join("\n") !== shown.join("\n")) legend.replaceChildren(...lines.map((line) => this.#legendEntry(line)));
    lines.forEach(({ name, values }, index) => {
      const entry = legend.children[index];
      const value = this.#cursor === null ? lastMeasured(values) : values[this.#cursor];
      setText(entry.lastElementChild, formatNumber(value));
      setPressed(entry, this.#chart.isLineShown(name));
    });
  }

  #legendEntry({ name, look, color }) {
    const swatch = element("span", { class: `pz-swatch pz-${look}`, style: `background: var(${lineColor(color)})` });
    return button(
      { "data-line": name, title: "Show or hide this line", onclick: () => this.#toggleLine(name) },
      swatch, element("span", {}, name), element("span", { class: "pz-value" }));
  }

  #toggleLine(name) {
    this.#chart.setLineShown(name, !this.#chart.isLineShown(name));
    this.#renderChart();
  }

  #toggleLogarithmic() {
    this.#isLogarithmic = !this.#isLogarithmic;
    this.#renderChart();
  }

  #show(view) {
    this.#view = view;
    this.#cursor = null;
    this.#renderChart();
  }

  #onCursor(index) {
    if (index === this.#cursor) return;
    this.#cursor = index;
    this.#renderLegend(chartData(this.#view, this.history.records).lines);
  }

  #forgetCommands() {
    this.#isStopping = false;
    this.#note = "";
  }

  #pick(step) {
    if (this.history.canReturn(step)) this.setUseStep(step);
    viewer ??= new PreviewViewer();
    viewer.open(this, step);
  }

  async #send(command) {
    if (command === "stop") this.#isStopping = true;
    this.render();
    try {
      this.#note = await sendCommand(this.history.run, command);
    } catch (problem) {
      this.#isStopping = false;
      this.#note = `The command did not reach the training: ${problem.message}`;
    }
    this.render();
  }
}

function emptyText(steps, isRunning) {
  if (steps) return "Not measured in this run.";
  if (isRunning) return "The chart begins with the first step.";
  return "Press Run: loss, gradients and previews appear here while it trains.";
}

function chartSummary(view, { steps, lines }) {
  const values = lines.map(({ name, values: all }) => `${name} ${formatNumber(lastMeasured(all))}`);
  if (!steps.length) return `${view}: no steps yet`;
  return `${view} from step ${steps[0]} to ${steps.at(-1)}: ${values.join(", ")}`;
}

const lastMeasured = (values) => values.findLast((value) => value !== undefined);
