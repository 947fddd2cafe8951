/**
 * Step records turned into the lines of a chart.
 *
 * A line's values: a number; null where it was measured and is not finite (drawn as a gap);
 * undefined where it was not measured (drawn through).
 */
import { t } from "../shared/texts.js";

const SMOOTHING = 0.95;

const VIEWS = { loss: lossLines, gradients: gradientLines, rate: rateLines };

/** @param view "loss", "gradients" or "rate" @returns {{steps: number[], lines: {name, values, look, color}[]}} */
export function chartData(view, records) {
  return { steps: records.map((record) => record.step), lines: VIEWS[view](records) };
}

/** Exponential moving mean without the start's bias; leaves gaps out of the mean and keeps them. */
export function smooth(values) {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (typeof value !== "number") return value;
    mean = SMOOTHING * mean + (1 - SMOOTHING) * value;
    weight = SMOOTHING * weight + (1 - SMOOTHING);
    return mean / weight;
  });
}

function lossLines(records) {
  const total = records.map((record) => measured(record.loss));
  const terms = namesIn(records, "parts");
  const lines = [
    { name: t("chart.total"), values: total, look: "faint", color: 0 },
    { name: t("chart.smoothed"), values: smooth(total), look: "strong", color: 0 },
  ];
  if (terms.length < 2) return lines; // a single term is the total
  return lines.concat(terms.map((term, index) => ({
    name: term, values: smooth(column(records, "parts", term)), look: "plain", color: index + 1 })));
}

function gradientLines(records) {
  return namesIn(records, "norms").map((name, index) => ({
    name: name.replace("|", " → "), values: column(records, "norms", name), look: "plain", color: index + 1 }));
}

function rateLines(records) {
  return namesIn(records, "lr").map((name, index) => ({
    name, values: column(records, "lr", name), look: "plain", color: index + 1 }));
}

const column = (records, field, name) => records.map((record) => measured(record[field]?.[name]));

const measured = (value) => (value === undefined || Number.isFinite(value) ? value : null);

/** Names in the order of their first appearance. */
function namesIn(records, field) {
  const names = new Set();
  for (const record of records) for (const name of Object.keys(record[field] ?? {})) names.add(name);
  return [...names];
}
