/** What is drawn on a Subject node: thumbnails of its pictures, and a place to drop more. */
import { element, icon, setText } from "../shared/dom.js";
import { t } from "../shared/texts.js";

const ACCEPTED = "image/*,.heic,.heif,.tif,.tiff,.tga,.ppm,.pgm,.pbm,.pnm,.pfm,.jp2,.mpo,.pcx,.qoi,.psd,.sgi,.dds,.txt,.caption";

export class PictureTray {
  root = element("div", { class: "pz-theme pz-tray", role: "region", "aria-label": t("tray.label") });
  #actions;
  #count = element("span", { class: "pz-state" });
  #all = element("button", {
    type: "button", class: "pz-button", title: t("tray.use_all_title"),
    onclick: () => this.#actions.useAll() });
  #error = element("div", { class: "pz-error", role: "alert", hidden: true });
  #grid = element("div", { class: "pz-tray-grid", role: "list" });
  #note = element("div", { class: "pz-message", role: "status", hidden: true });
  #hint = element("div", { class: "pz-tray-hint" }, t("tray.hint"));
  #chooser = element("input", {
    type: "file", multiple: "", accept: ACCEPTED, hidden: true, onchange: () => this.#onChosen() });

  /** @param actions {add(files), remove(name), useAll()} */
  constructor(actions) {
    this.#actions = actions;
    const choose = element("button", {
      type: "button", class: "pz-button", title: t("tray.choose_title"),
      onclick: () => this.#chooser.click() }, icon("upload"), ` ${t("tray.choose")}`);
    this.root.append(
      element("div", { class: "pz-row" }, this.#count, element("div", { class: "pz-group" }, this.#all, choose)),
      this.#error, this.#note, this.#hint, this.#grid, this.#chooser);
    this.root.addEventListener("dragover", (event) => this.#onDrag(event));
    this.root.addEventListener("dragleave", () => this.root.classList.remove("pz-dropping"));
    this.root.addEventListener("drop", (event) => this.#onDrop(event));
  }

  /** @param pictures [{name, url}] @param available how many pictures the folder holds */
  show(pictures, available) {
    setText(this.#count, t("tray.count", { count: pictures.length }));
    setText(this.#all, t("tray.use_all", { count: available }));
    this.#all.hidden = available <= pictures.length;
    this.#hint.hidden = pictures.length > 0;
    this.#grid.replaceChildren(...pictures.map((picture) => this.#thumbnail(picture)));
  }

  /** One sentence, or "" for none. */
  showError(sentence) {
    setText(this.#error, sentence);
    this.#error.hidden = !sentence;
  }

  /** What of the folder is not used, as one sentence, or "" for nothing. */
  showNote(sentence) {
    setText(this.#note, sentence);
    this.#note.hidden = !sentence;
  }

  showBusy(isBusy) {
    this.root.setAttribute("aria-busy", String(isBusy));
  }

  #thumbnail({ name, url }) {
    const picture = element("img", {
      src: url, alt: name, draggable: "false", onerror: () => item.classList.add("pz-unseen") });
    const item = element("div", { class: "pz-tray-item", role: "listitem", title: name, "data-name": name },
      picture, element("span", { class: "pz-tray-name" }, name),
      element("button", { type: "button", class: "pz-tray-remove", title: t("tray.leave_out_title", { name }),
        "aria-label": t("tray.leave_out", { name }), onclick: () => this.#actions.remove(name) }, icon("times")));
    return item;
  }

  #onChosen() {
    const files = [...this.#chooser.files];
    this.#chooser.value = ""; // so that the same files can be chosen again
    if (files.length) this.#actions.add(files);
  }

  #onDrag(event) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    this.root.classList.add("pz-dropping");
  }

  #onDrop(event) {
    this.root.classList.remove("pz-dropping");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault(); // else the page opens the pictures as workflows
    event.stopPropagation();
    this.#actions.add([...event.dataTransfer.files]);
  }
}
