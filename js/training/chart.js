/** Line chart over the training steps, drawn by uPlot in the colours of ComfyUI's theme. */
import uPlot from "../vendor/uplot-1.6.32/uPlot.mjs";
import { formatTick } from "./format.js";

const FONT = "11px system-ui, sans-serif";
const WHOLE_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];
const MIN_PIXELS_BETWEEN_LABELS = 22;
const LOOKS = {
  faint: { width: 1, alpha: 0.35 },
  plain: { width: 1.5, alpha: 1 },
  strong: { width: 2.5, alpha: 1 },
};

export class TrainingChart {
  #container;
  #onCursor;
  #plot = null;
  #drawn = "";
  #hidden = new Set();

  /** @param onCursor called with the index of the record under the pointer, null when there is none */
  constructor(container, onCursor) {
    this.#container = container;
    this.#onCursor = onCursor;
    new ResizeObserver(() => this.#fit()).observe(container);
  }

  /** @param logarithmic of the values; those that are 0 lie on the lower edge */
  show({ steps, lines }, logarithmic) {
    const kind = JSON.stringify([logarithmic, lines.map(({ name, look, color }) => [name, look, color])]);
    const columns = [steps, ...lines.map((line) => line.values)];
    if (this.#plot && kind === this.#drawn) {
      this.#plot.setData(columns);
      return;
    }
    this.#drawn = kind;
    this.#plot?.destroy();
    this.#plot = new uPlot({ ...this.#size(), ...this.#options(lines, logarithmic) }, columns, this.#container);
  }

  setLineShown(name, isShown) {
    if (isShown) this.#hidden.delete(name);
    else this.#hidden.add(name);
    const index = this.#plot?.series.findIndex((series) => series.label === name) ?? -1;
    if (index > 0) this.#plot.setSeries(index, { show: isShown });
  }

  /** Put the pointer's line on a record. */
  pointAt(index) {
    const step = this.#plot.data[0][index];
    this.#plot.cursor.event = null; // the pointer's last place does not count
    this.#plot.setCursor({ left: this.#plot.valToPos(step, "x"), top: 0 }, false);
  }

  isLineShown(name) {
    return !this.#hidden.has(name);
  }

  /** Draw again with the theme's colours of now. */
  refresh() {
    this.#plot?.redraw(false, true);
  }

  #options(lines, logarithmic) {
    return {
      legend: { show: false },
      padding: [8, 12, 0, 0],
      cursor: { y: false, drag: { x: false, y: false, setScale: false }, move: positionOnZoomedCanvas },
      scales: {
        x: { time: false, range: (_, min, max) => (min === max ? [min - 1, max + 1] : [min, max]) },
        y: logarithmic ? { distr: 3, range: logarithmicRange, clamp: slightlyAboveTheEdge } : {},
      },
      axes: [this.#axis({ incrs: WHOLE_STEPS, size: 28 }), this.#axis({ values: valueLabels, size: 54 })],
      series: [{}, ...lines.map((line) => this.#series(line))],
      hooks: { setCursor: [(plot) => this.#onCursor(plot.cursor.idx ?? null)] },
    };
  }

  #axis(options) {
    const line = { stroke: () => this.#color("--pz-grid"), width: 1, filter: roundValues };
    const labels = { stroke: () => this.#color("--pz-axis"), font: FONT, filter: roundValues };
    return { ...labels, grid: line, ticks: { ...line, size: 4 }, ...options };
  }

  #series({ name, look, color }) {
    const stroke = () => this.#color(lineColor(color));
    return {
      label: name, show: this.isLineShown(name), stroke, ...LOOKS[look],
      points: { show: false, filter: lonelyPoints, size: 5, fill: stroke },
    };
  }

  #color(property) {
    return getComputedStyle(this.#container).getPropertyValue(property).trim() || "gray";
  }

  #size() {
    return { width: Math.max(this.#container.clientWidth, 50), height: Math.max(this.#container.clientHeight, 50) };
  }

  #fit() {
    const size = this.#size();
    const isOther = this.#plot && (this.#plot.width !== size.width || this.#plot.height !== size.height);
    if (isOther) this.#plot.setSize(size);
  }
}

/** Name of the CSS property with a line's colour. */
export const lineColor = (index) => `--pz-line-${index % 8}`;

const valueLabels = (_, splits) => splits.map(formatTick);

/** On a logarithmic axis: powers of ten with room between them, or 1, 2, 5, 10, … where there is much room. */
function roundValues(plot, splits, axis) {
  const { scale } = plot.axes[axis];
  if (plot.scales[scale].distr !== 3) return splits;
  const decade = Math.abs(plot.valToPos(1, scale) - plot.valToPos(10, scale));
  const every = Math.ceil(MIN_PIXELS_BETWEEN_LABELS / decade);
  const firstDigits = decade > 5 * MIN_PIXELS_BETWEEN_LABELS ? ["1", "2", "5"] : ["1"];
  return splits.map((split) => {
    const [digits, exponent] = split.toExponential(3).split("e");
    return Number(exponent) % every === 0 && firstDigits.includes(digits.replace(/\.?0+$/, "")) ? split : null;
  });
}

/** uPlot asks for the range of the positive values; there may be none. */
function logarithmicRange(_plot, min, max) {
  if (!(min > 0) || !(max > 0)) return [0.1, 1];
  return uPlot.rangeLog(min / 1.5, max * 1.5, 10, false);
}

/** Where to draw what has no logarithm, as 0: a gradient that vanished must be seen. */
const slightlyAboveTheEdge = (_plot, _value, min, max) => min * (max / min) ** 0.02;

/** Where to draw a dot although lines are drawn: at a value between two gaps, which no line would reach. */
function lonelyPoints(plot, line) {
  const values = plot.data[line];
  const neighbour = (index, way) => {
    do index += way; while (values[index] === undefined && index > 0 && index < values.length);
    return values[index] ?? null;
  };
  const isAlone = (index) => neighbour(index, -1) === null && neighbour(index, 1) === null;
  const found = values.flatMap((value, index) => (typeof value === "number" && isAlone(index) ? [index] : []));
  return found.length ? found : null;
}

/** The graph's canvas scales and moves this element by a CSS transform, which uPlot does not reckon with. */
function positionOnZoomedCanvas(plot, left, top) {
  const event = plot.cursor.event;
  if (!event || event.type === "mouseleave") return [left, top];
  const box = plot.over.getBoundingClientRect();
  const zoom = box.width / plot.over.offsetWidth || 1;
  return [(event.clientX - box.left) / zoom, (event.clientY - box.top) / zoom];
}
