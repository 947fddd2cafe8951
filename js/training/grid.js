/** The section of the training panel with its pictures: columns of steps beside photographs, rows of prompts and noises. */
import { button, element, icon, setPressed, setText } from "../shared/dom.js";
import { t } from "../shared/texts.js";
import { formatDuration } from "./format.js";
import { gridOf } from "./grid_model.js";
import { lookAt } from "./grid_viewer.js";
import { imageAddress } from "./server.js";

const HIGHEST = 350; // of the pictures on the node; beyond it they scroll
const HEIGHTS = { head: 20, prompt: 20, row: 72, onlyRow: 92 };
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class PictureGrid {
  root;
  #panel;
  #table = element("table", { class: "pz-grid", role: "grid", "aria-label": t("grid.label") });
  #scroll = element("div", { class: "pz-grid-scroll" }, this.#table);
  #cost = element("span", { class: "pz-grid-cost" });
  #returned = element("span", { class: "pz-returned" });
  #lastButton;
  #shown = "";
  #chosen = null;
  #grid = gridOf([]);
  /** key of a picture → its button */
  #buttons = new Map();
  /** [step, key of a row] of the picture that the Tab key comes to */
  #current = null;

  constructor(panel) {
    this.#panel = panel;
    this.#lastButton = button(
      { class: "pz-button pz-last", onclick: () => panel.choose(0), title: t("grid.last_title") }, t("grid.last"));
    this.#table.addEventListener("keydown", (event) => this.#onKey(event));
    this.root = element("div", { class: "pz-strip" },
      element("div", { class: "pz-row pz-strip-heading" },
        element("span", {}, t("grid.heading"), " ", this.#cost),
        element("span", { class: "pz-group" }, this.#returned, this.#lastButton)),
      this.#scroll);
  }

  /** What it would be high with all its rows, in pixels. */
  get height() {
    const { rows } = this.#grid;
    const prompts = new Set(rows.map(({ prompt }) => prompt).filter(Boolean));
    const high = rows.length > 1 ? HEIGHTS.row * rows.length : HEIGHTS.onlyRow;
    return Math.min(HIGHEST, HEIGHTS.head + HEIGHTS.prompt * prompts.size + high);
  }

  render(panel) {
    const { history } = panel;
    const chosen = panel.chosenStep();
    this.root.hidden = history.previews.length === 0;
    const pictures = [...history.previews, ...history.photographs].map(keyOf).join("\n");
    if (pictures !== this.#shown || chosen !== this.#chosen) this.#build(history, chosen);
    this.#shown = pictures;
    this.#chosen = chosen;
    setText(this.#cost, costText(history.cost));
    setPressed(this.#lastButton, chosen === 0);
    setText(this.#returned, chosen > 0 ? t("grid.returns_step", { step: chosen }) : t("grid.returns_last"));
  }

  #build({ previews, photographs }, chosen) {
    const grid = this.#grid = gridOf(previews);
    const wasAtEnd = this.#scroll.scrollLeft + this.#scroll.clientWidth >= this.#scroll.scrollWidth - 4;
    const before = this.#scroll.scrollTop;
    const hadFocus = this.#table.contains(document.activeElement);
    this.#forgetOthers(previews);
    if (!this.#current || !grid.at(...this.#current)) this.#current = [grid.steps.at(-1), grid.rows[0]?.key];
    const columns = grid.steps.length + (photographs.length ? 1 : 0);
    const rows = grid.rows.flatMap((row, number) => this.#rows(row, number, photographs, columns));
    this.#table.replaceChildren(head(grid.steps, photographs.length > 0, chosen), element("tbody", {}, ...rows));
    this.#table.classList.toggle("pz-small", grid.rows.length > 1);
    if (hadFocus) this.#buttonAt(this.#current)?.focus({ preventScroll: true });
    this.#scroll.scrollTop = before;
    if (wasAtEnd) this.#scroll.scrollLeft = this.#scroll.scrollWidth;
  }

  /** A row of pictures, after one with its prompt where that is another than before. */
  #rows(row, number, photographs, columns) {
    const { rows, steps } = this.#grid;
    const isNewPrompt = row.prompt && row.prompt !== rows[number - 1]?.prompt;
    const caption = element("tr", { class: "pz-prompt" },
      element("th", { colspan: String(columns), scope: "rowgroup" }, element("span", {}, row.prompt)));
    const cells = steps.map((step) => element("td", { role: "gridcell" }, ...this.#cell(step, row)));
    if (photographs.length) cells.unshift(photographCell(photographs, number));
    return [...(isNewPrompt ? [caption] : []), element("tr", {}, ...cells)];
  }

  #cell(step, row) {
    const preview = this.#grid.at(step, row.key);
    if (!preview) return [];
    const key = keyOf(preview);
    if (!this.#buttons.has(key)) this.#buttons.set(key, this.#button(preview, row));
    const found = this.#buttons.get(key);
    const [currentStep, currentRow] = this.#current;
    found.tabIndex = step === currentStep && row.key === currentRow ? 0 : -1;
    return [found];
  }

  #button(preview, row) {
    const name = pictureName(preview.step, row);
    const picture = element("img", { src: imageAddress(preview, true), alt: name, loading: "lazy", draggable: "false" });
    return button({
      class: "pz-thumbnail", "data-step": preview.step, title: t("grid.open", { name }),
      onfocus: () => this.#makeCurrent(preview.step, row.key),
      onclick: () => lookAt(this.#panel, preview.step, row.key) }, picture);
  }

  #forgetOthers(previews) {
    const known = new Set(previews.map(keyOf));
    for (const key of this.#buttons.keys()) if (!known.has(key)) this.#buttons.delete(key);
  }

  #makeCurrent(step, key) {
    const before = this.#buttonAt(this.#current);
    if (before) before.tabIndex = -1;
    this.#current = [step, key];
    this.#buttonAt(this.#current).tabIndex = 0;
  }

  #buttonAt([step, key]) {
    const preview = this.#grid.at(step, key);
    return preview && this.#buttons.get(keyOf(preview));
  }

  #onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.key === "Tab" || event.key === "Escape") return;
    event.stopPropagation(); // else Delete would delete the selected node
    const { steps, rows } = this.#grid;
    const [step, key] = this.#current;
    const row = rows.findIndex((each) => each.key === key);
    const column = steps.indexOf(step);
    const places = { Home: [0, row], End: [steps.length - 1, row] };
    const [across, down] = MOVES[event.key] ?? [];
    const [toColumn, toRow] = places[event.key] ?? [column + across, row + down];
    if (places[event.key] || MOVES[event.key]) event.preventDefault();
    if (rows[toRow]) this.#buttonAt([steps[toColumn], rows[toRow].key])?.focus();
  }
}

/** What a picture shows, for the eye and for screen readers. */
export function pictureName(step, { prompt, noise, isOneOfMany }) {
  if (!prompt) return t("grid.picture", { step });
  return isOneOfMany ? t("grid.scene_of_noise", { step, prompt, number: noise + 1 }) : t("grid.scene", { step, prompt });
}

function head(steps, hasPhotographs, chosen) {
  const names = steps.map((step) => element("th", { scope: "col", class: step === chosen && step > 0 ? "pz-chosen" : "" },
    ...(step === chosen && step > 0 ? [icon("check"), " ", t("grid.chosen_step", { step })] : [String(step)])));
  if (hasPhotographs) names.unshift(element("th", { scope: "col", class: "pz-beside" }, t("grid.photographs")));
  return element("thead", {}, element("tr", {}, ...names));
}

function photographCell(photographs, number) {
  const photograph = photographs[number % photographs.length];
  return element("td", { class: "pz-beside", role: "gridcell" }, element("img", {
    src: imageAddress(photograph, true), alt: t("grid.photograph"), loading: "lazy", draggable: "false" }));
}

/** "2 min 10 s so far, 22 % of the run's time; every 100 steps instead of 50" */
function costText(cost) {
  if (!cost || !Number.isFinite(cost.seconds)) return "";
  const time = formatDuration(cost.seconds);
  const isKnown = Number.isFinite(cost.expected);
  const parts = [isKnown ? t("grid.cost", { time, share: percent(cost.expected) }) : t("grid.time", { time })];
  if (!cost.pictures) return [...parts, t("grid.none", { bound: percent(cost.bound) })].join("; ");
  if (cost.every > cost.asked) parts.push(cost.every < cost.steps ? t("grid.every", cost) : t("grid.ends_only", cost));
  if (cost.pictures < cost.wanted) parts.push(t("grid.fewer", cost));
  return parts.join("; ");
}

const percent = (share) => Math.round(100 * share);

const keyOf = ({ step, image, version }) => `${step} ${image?.filename} ${version}`;
