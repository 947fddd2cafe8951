/** Widgets of nodes that act while drawing and cannot act as they are set: a sentence for each. */
import { t } from "../shared/texts.js";

const EVERYWHERE = "everywhere"; // where of Self-Attention Swap
const OF_SECOND = ["words_2", "mask_2"]; // of Apply ViCo's image_2
const OF_MASK = ["words", "mask"];

/**
 * @param type of the node @param value(name) what is typed there, undefined where another node computes it
 * @param isLinked(name) whether an input is connected
 */
export function idleSettings(type, value, isLinked) {
  const isSet = (name) => isLinked(name) || Boolean(value(name));
  const [start, end] = [value("start_percent"), value("end_percent")].map((each) => (each === undefined ? NaN : Number(each)));
  const found = [];
  if (start >= end) found.push(t("idle.percents", { start, end }));
  if (value("strength") !== undefined && Number(value("strength")) === 0) found.push(t("idle.strength"));
  if (type === "PersonalizeApplyViCo" && !isLinked("image_2")) {
    found.push(...OF_SECOND.filter(isSet).map((name) => t("idle.no_second", { name })));
  }
  if (type === "PersonalizeSelfAttentionSwap" && value("where") === EVERYWHERE) {
    found.push(...OF_MASK.filter(isSet).map((name) => t("idle.everywhere", { name })));
  }
  return found;
}
