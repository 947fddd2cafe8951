/** Pictures of one scene large, side by side on top of the page, with the files of the step that is looked at. */
import { button, element, icon, setPressed, setText } from "../shared/dom.js";
import { listed, t } from "../shared/texts.js";
import { gridOf } from "./grid_model.js";
import { exportStep, imageAddress } from "./server.js";

const MOST_ZOOM = 8;
let viewer = null;

/** @param panel of the node whose pictures they are @param key of a row of the grid */
export function lookAt(panel, step, key) {
  viewer ??= new PictureViewer();
  viewer.open(panel, step, key);
}

/** Arrow keys leaf through steps and scenes; looking never chooses. */
class PictureViewer {
  #dialog;
  #title = element("h2", { id: "pz-viewer-title" });
  #scene = element("p", { class: "pz-scene", "aria-live": "polite" });
  #figures = element("div", { class: "pz-compare" });
  #files = element("div", { class: "pz-files" });
  #said = element("span", { role: "status" });
  #zoom = element("input", { type: "range", min: "1", max: String(MOST_ZOOM), step: "0.5", value: "1" });
  #keep = button({ class: "pz-button", title: t("viewer.keep_title"), onclick: () => this.#toggleKept() });
  #use = button({ class: "pz-button", onclick: () => this.#toggleUse() });
  #export = button({ class: "pz-button", title: t("viewer.export_title"), onclick: () => this.#exportStep() });
  #panel = null;
  #step = 0;
  #row = "";
  /** steps that stay beside the one that is looked at */
  #kept = new Set([0]);
  #scrolling = false;
  #isExporting = false;

  constructor() {
    const iconButton = (name, label, onclick) => button(
      { class: "pz-button", "aria-label": label, title: label, onclick }, icon(name));
    this.#zoom.oninput = () => this.#applyZoom();
    this.#export.append(icon("download"), " ", t("viewer.export"));
    this.#dialog = element("dialog", { class: "pz-theme pz-viewer", "aria-labelledby": "pz-viewer-title" },
      element("header", {}, this.#title, this.#scene,
        element("label", { class: "pz-zoom" }, t("viewer.zoom"), this.#zoom),
        element("div", { class: "pz-group" },
          iconButton("chevron-up", t("viewer.scene_before"), () => this.#turnScene(-1)),
          iconButton("chevron-down", t("viewer.scene_after"), () => this.#turnScene(1)),
          iconButton("chevron-left", t("viewer.step_before"), () => this.#turnStep(-1)),
          iconButton("chevron-right", t("viewer.step_after"), () => this.#turnStep(1)),
          iconButton("times", t("viewer.close"), () => this.#dialog.close()))),
      this.#figures, this.#files,
      element("div", { class: "pz-use" }, this.#use, this.#keep, this.#export, this.#said));
    this.#dialog.addEventListener("keydown", (event) => this.#onKey(event));
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#figures.addEventListener("scroll", (event) => this.#scrollTogether(event.target), { capture: true });
    document.body.append(this.#dialog);
  }

  open(panel, step, key) {
    if (panel !== this.#panel) this.#kept = new Set([0]);
    this.#panel = panel;
    this.#step = step;
    this.#row = key;
    setText(this.#said, "");
    this.#render();
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#dialog.focus();
  }

  get #grid() {
    return gridOf(this.#panel.history.previews);
  }

  #render() {
    const { history } = this.#panel;
    const { rows } = this.#grid;
    const row = rows.find(({ key }) => key === this.#row);
    const saved = history.saved.find((entry) => entry.step === this.#step);
    setText(this.#title, t("viewer.title", { run: history.run, step: this.#step }));
    setText(this.#scene, sceneText(row, rows));
    this.#renderFigures(rows.indexOf(row));
    this.#files.replaceChildren(...(saved ? savedRows(saved) : [noFile(this.#step, history.saved)]));
    const isUsed = this.#panel.chosenStep() === this.#step && this.#step > 0;
    this.#use.hidden = !history.canReturn(this.#step);
    setText(this.#use, isUsed ? t("viewer.use_last") : t("viewer.use"));
    this.#keep.replaceChildren(icon("bookmark"), " ", t("viewer.keep"));
    setPressed(this.#keep, this.#kept.has(this.#step));
    this.#export.hidden = !saved;
  }

  #renderFigures(number) {
    const { photographs } = this.#panel.history;
    const grid = this.#grid;
    const steps = grid.steps.filter((step) => step === this.#step || this.#kept.has(step));
    const figures = steps.flatMap((step) => this.#figure(grid.at(step, this.#row), step));
    const beside = photographs[number % photographs.length];
    if (beside) figures.unshift(figure(beside, t("grid.photograph"), t("grid.photograph")));
    this.#figures.replaceChildren(...figures);
    this.#figures.style.setProperty("--pz-columns", String(figures.length));
    this.#applyZoom();
  }

  #figure(preview, step) {
    if (!preview) return [];
    const isChosen = step > 0 && step === this.#panel.chosenStep();
    const name = isChosen ? t("grid.chosen_step", { step }) : t("viewer.step", { step });
    const made = figure(preview, name, t("grid.picture", { step }), isChosen);
    made.classList.toggle("pz-current", step === this.#step);
    return [made];
  }

  #applyZoom() {
    this.#figures.style.setProperty("--pz-zoom", this.#zoom.value);
  }

  /** What is looked at closely is the same place of every picture. */
  #scrollTogether(moved) {
    if (this.#scrolling || !moved.classList?.contains("pz-pan")) return;
    this.#scrolling = true;
    const part = (at, whole, seen) => (whole > seen ? at / (whole - seen) : 0);
    const across = part(moved.scrollLeft, moved.scrollWidth, moved.clientWidth);
    const down = part(moved.scrollTop, moved.scrollHeight, moved.clientHeight);
    for (const pan of this.#figures.querySelectorAll(".pz-pan")) {
      if (pan === moved) continue;
      pan.scrollLeft = across * (pan.scrollWidth - pan.clientWidth);
      pan.scrollTop = down * (pan.scrollHeight - pan.clientHeight);
    }
    requestAnimationFrame(() => (this.#scrolling = false));
  }

  #toggleUse() {
    this.#panel.choose(this.#panel.chosenStep() === this.#step ? 0 : this.#step);
    this.#render();
    const step = this.#panel.chosenStep();
    setText(this.#said, step ? t("viewer.will_return", { step }) : t("viewer.will_return_last"));
  }

  #toggleKept() {
    if (!this.#kept.delete(this.#step)) this.#kept.add(this.#step);
    this.#render();
  }

  async #exportStep() {
    if (this.#isExporting) return;
    this.#isExporting = true; // a disabled button would lose the focus, and with it the keys
    setText(this.#said, t("viewer.exporting"));
    try {
      setText(this.#said, await exportStep(this.#panel.history.run, this.#step));
    } catch (problem) {
      setText(this.#said, t("viewer.not_exported", { reason: problem.message }));
    }
    this.#isExporting = false;
  }

  #turnStep(way) {
    const { steps, at } = this.#grid;
    const ahead = way > 0 ? steps.filter((step) => step > this.#step) : steps.filter((step) => step < this.#step).reverse();
    const next = ahead.find((step) => at(step, this.#row));
    if (next === undefined) return;
    this.#step = next;
    setText(this.#said, "");
    this.#render();
  }

  #turnScene(way) {
    const { rows, at } = this.#grid;
    let index = rows.findIndex(({ key }) => key === this.#row) + way;
    while (rows[index] && !at(this.#step, rows[index].key)) index += way;
    if (!rows[index]) return;
    this.#row = rows[index].key;
    this.#render();
  }

  #onKey(event) {
    event.stopPropagation(); // else Delete would delete the selected node
    if (event.target instanceof HTMLInputElement && event.key !== "Escape") return;
    const keys = {
      Escape: () => this.#dialog.close(), // the page keeps this key from dialogs that it does not know
      ArrowLeft: () => this.#turnStep(-1), ArrowRight: () => this.#turnStep(1), ArrowUp: () => this.#turnScene(-1),
      ArrowDown: () => this.#turnScene(1), "+": () => this.#stepZoom(1), "-": () => this.#stepZoom(-1) };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  #stepZoom(way) {
    this.#zoom.valueAsNumber = Math.min(MOST_ZOOM, Math.max(1, this.#zoom.valueAsNumber + way));
    this.#applyZoom();
  }
}

function figure(picture, name, alt, isChosen = false) {
  const image = element("img", { class: "pz-large", src: imageAddress(picture), alt, draggable: "false" });
  const mark = isChosen ? [icon("check"), " "] : [];
  return element("figure", {}, element("div", { class: "pz-pan" }, image), element("figcaption", {}, ...mark, name));
}

function sceneText(row, rows) {
  if (!row?.prompt) return "";
  const name = row.isOneOfMany ? t("viewer.scene_of_noise", { prompt: row.prompt, number: row.noise + 1 }) : row.prompt;
  return rows.length > 1 ? t("viewer.place", { name, number: rows.indexOf(row) + 1, total: rows.length }) : name;
}

function savedRows({ embeddings, files, isWhole }) {
  const prompts = embeddings.map((text) => {
    const field = element("input", {
      type: "text", readonly: "", value: text, "aria-label": t("viewer.prompt_text"), size: text.length });
    const copy = button({ class: "pz-button" }, icon("copy"), " ", t("viewer.copy"));
    copy.onclick = () => copyText(field, copy);
    return element("div", { class: "pz-embedding" }, element("span", {}, t("viewer.in_prompt")), field, copy);
  });
  const paths = files.map((file) => element("p", { class: "pz-file" }, file));
  return [...prompts, ...paths, ...(isWhole ? [] : [element("p", {}, t("viewer.weights_at_end"))])];
}

function noFile(step, saved) {
  if (step === 0) return element("p", {}, t("viewer.step_0"));
  const steps = listed(saved.map((entry) => entry.step));
  return element("p", {}, steps ? t("viewer.files_elsewhere", { step, steps }) : t("viewer.no_file", { step }));
}

async function copyText(field, pressed) {
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    pressed.replaceChildren(icon("check"), " ", t("viewer.copied"));
  } catch {
    pressed.replaceChildren(t("viewer.press_copy")); // browsers give the clipboard only to https and localhost
    field.focus();
  }
}
