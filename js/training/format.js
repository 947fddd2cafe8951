/** Numbers and times as a person reads them. */
import { t } from "../shared/texts.js";

/** @param value a number, null for "not a number", undefined for "not measured" */
export function formatNumber(value) {
  if (value === undefined) return "–";
  if (value === null || !Number.isFinite(value)) return "NaN";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e5 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** Shorter than formatNumber, for the axes. */
export function formatTick(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return String(value.toExponential(1)).replace(".0e", "e");
  return String(Number(value.toPrecision(3)));
}

/** @param seconds null or undefined when unknown: gives "" */
export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return t("time.seconds", { seconds: whole });
  const padded = (number) => String(number).padStart(2, "0");
  if (whole < 3600) {
    return t("time.minutes", { minutes: Math.floor(whole / 60), seconds: padded(whole % 60) });
  }
  return t("time.hours", { hours: Math.floor(whole / 3600), minutes: padded(Math.floor((whole % 3600) / 60)) });
}
