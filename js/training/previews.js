/** The strip of preview pictures, and the large view of one of them. */
import { button, element, icon, setPressed, setText } from "../shared/dom.js";
import { listed, t } from "../shared/texts.js";
import { imageAddress } from "./server.js";

/** A row of thumbnails, one per previewed step, and "last". */
export class PreviewStrip {
  root;
  #row = element("div", { class: "pz-thumbnails", role: "group", "aria-label": t("previews.label") });
  #lastButton;
  #returned = element("span", { class: "pz-returned" });
  #thumbnails = new Map();
  #panel;

  constructor(panel) {
    this.#panel = panel;
    this.#lastButton = button({
      class: "pz-last", onclick: () => panel.choose(0), title: t("previews.last_title"),
    }, t("previews.last"));
    const heading = element("div", { class: "pz-strip-heading" }, element("span", {}, t("previews.heading")), this.#returned);
    this.root = element("div", { class: "pz-strip" },
      heading, element("div", { class: "pz-strip-row" }, this.#row, this.#lastButton));
  }

  render(panel) {
    const { history } = panel;
    const useStep = panel.chosenStep();
    const isAtEnd = this.#row.scrollLeft + this.#row.clientWidth >= this.#row.scrollWidth - 4;
    const known = new Set(history.previews.map(keyOf));
    for (const [key, thumbnail] of this.#thumbnails) {
      if (known.has(key)) continue;
      thumbnail.remove();
      this.#thumbnails.delete(key);
    }
    history.previews.forEach((preview, index) => this.#place(preview, index));
    for (const preview of history.previews) {
      setPressed(this.#thumbnails.get(keyOf(preview)), preview.step === useStep && useStep > 0);
    }
    setPressed(this.#lastButton, useStep === 0);
    setText(this.#returned, useStep > 0 ? t("previews.returns_step", { step: useStep }) : t("previews.returns_last"));
    this.root.hidden = history.previews.length === 0;
    if (isAtEnd) this.#row.scrollLeft = this.#row.scrollWidth;
  }

  #place(preview, index) {
    const key = keyOf(preview);
    if (!this.#thumbnails.has(key)) this.#thumbnails.set(key, this.#thumbnail(preview));
    const thumbnail = this.#thumbnails.get(key);
    if (this.#row.children[index] !== thumbnail) this.#row.insertBefore(thumbnail, this.#row.children[index] ?? null);
  }

  #thumbnail(preview) {
    const picture = element("img", {
      src: imageAddress(preview, true), alt: t("previews.picture", { step: preview.step }), loading: "lazy", draggable: "false" });
    return button({
      class: "pz-thumbnail", "data-step": preview.step, title: t("previews.open", { step: preview.step }),
      onclick: () => this.#look(preview.step) }, picture, element("span", {}, String(preview.step)));
  }

  #look(step) {
    new PreviewViewer(this.#panel).open(step);
  }
}

const keyOf = ({ step, version }) => `${step} ${version}`;

/** Shows one preview large, on top of the page, with the file of its step; arrow keys leaf through the others. */
class PreviewViewer {
  #dialog;
  #picture = element("img", { class: "pz-large" });
  #title = element("h2", { id: "pz-viewer-title" });
  #files = element("div", { class: "pz-files" });
  #use = element("span", { role: "status" });
  #useButton = button({ class: "pz-button" });
  #useRow = element("div", { class: "pz-use" }, this.#use, this.#useButton);
  #panel;
  #step = 0;

  /** @param panel of the node whose previews they are */
  constructor(panel) {
    this.#panel = panel;
    const iconButton = (name, label, onclick) => button(
      { class: "pz-button", "aria-label": label, title: label, onclick }, icon(name));
    const close = iconButton("times", t("previews.close"), () => this.#dialog.close());
    const earlier = iconButton("chevron-left", t("previews.earlier"), () => this.#turn(-1));
    const later = iconButton("chevron-right", t("previews.later"), () => this.#turn(1));
    this.#useButton.onclick = () => this.#toggleUse();
    this.#dialog = element("dialog", { class: "pz-theme pz-viewer", "aria-labelledby": "pz-viewer-title" },
      element("header", {}, this.#title, close),
      element("div", { class: "pz-viewer-picture" }, earlier, this.#picture, later),
      this.#files, this.#useRow);
    this.#dialog.addEventListener("keydown", (event) => this.#onKey(event));
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#dialog.remove());
    document.body.append(this.#dialog);
  }

  open(step) {
    this.#step = step;
    this.#render();
    this.#dialog.showModal();
    this.#dialog.focus();
  }

  #render() {
    const { history } = this.#panel;
    const preview = history.previews.find((entry) => entry.step === this.#step);
    const saved = history.saved.find((entry) => entry.step === this.#step);
    setText(this.#title, t("previews.title", { run: history.run, step: this.#step }));
    this.#picture.src = imageAddress(preview);
    this.#picture.alt = t("previews.picture", { step: this.#step });
    const noFile = () => element("p", {}, noFileSentence(this.#step, history.saved));
    this.#files.replaceChildren(...(saved ? savedRows(saved) : [noFile()]));
    const isUsed = this.#panel.chosenStep() === this.#step;
    this.#useRow.hidden = !history.canReturn(this.#step);
    setText(this.#use, isUsed ? t("previews.will_return", { step: this.#step }) : "");
    setText(this.#useButton, t(isUsed ? "previews.use_last" : "previews.use_step"));
  }

  #toggleUse() {
    this.#panel.choose(this.#panel.chosenStep() === this.#step ? 0 : this.#step);
    this.#render();
  }

  #turn(way) {
    const { previews } = this.#panel.history;
    const index = previews.findIndex((entry) => entry.step === this.#step) + way;
    if (!previews[index]) return;
    this.#step = previews[index].step;
    this.#render();
  }

  #onKey(event) {
    event.stopPropagation(); // else Delete would delete the selected node
    if (event.target instanceof HTMLInputElement) return;
    if (event.key === "ArrowLeft") this.#turn(-1);
    if (event.key === "ArrowRight") this.#turn(1);
  }
}

function savedRows({ embeddings, files, isWhole }) {
  const prompts = embeddings.map((text) => {
    const field = element("input", {
      type: "text", readonly: "", value: text, "aria-label": t("previews.prompt_label"), size: text.length });
    const copy = button({ class: "pz-button" }, icon("copy"), ` ${t("previews.copy")}`);
    copy.onclick = () => copyText(field, copy);
    return element("div", { class: "pz-embedding" }, element("span", {}, t("previews.in_a_prompt")), field, copy);
  });
  const paths = files.map((file) => element("p", { class: "pz-file" }, file));
  return [...prompts, ...paths, ...(isWhole ? [] : [element("p", {}, t("previews.weights_at_end"))])];
}

function noFileSentence(step, saved) {
  if (step === 0) return t("previews.step_0");
  const steps = listed(saved.map((entry) => entry.step));
  return t(steps ? "previews.files_elsewhere" : "previews.no_file", { step, steps });
}

async function copyText(field, pressed) {
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    pressed.replaceChildren(icon("check"), ` ${t("previews.copied")}`);
  } catch {
    pressed.replaceChildren(t("previews.press_copy")); // browsers give the clipboard only to https and localhost
    field.focus();
  }
}
