/** What is drawn on a Subject node: its pictures with captions and masks, and a place to drop more. */
import { button, element, icon, setPressed, setText } from "../shared/dom.js";
import { walkWithArrows } from "../shared/keys.js";
import { t } from "../shared/texts.js";
import { Findings, remarksAbout } from "./findings.js";
import { TrayItem } from "./item.js";

const ACCEPTED = "image/*,.heic,.heif,.tif,.tiff,.tga,.ppm,.pgm,.pbm,.pnm,.pfm,.jp2,.mpo,.pcx,.qoi,.psd,.sgi,.dds,.txt,.caption";

export class PictureTray {
  root = element("div", { class: "pz-theme pz-tray", role: "region", "aria-label": t("tray.label") });
  #actions;
  /** name → its item */
  #items = new Map();
  #found = null;
  #selected = "";
  #maskUrls = {};
  #areMasksShown = true;
  #count = element("span", { class: "pz-state" });
  #all = button({ class: "pz-button", title: t("tray.use_all_title"), onclick: () => this.#actions.useAll() });
  #masks = button({ class: "pz-button", title: t("mask.show_title"), hidden: true, onclick: () => this.#toggleMasks() },
    t("mask.show"));
  #make = button({ class: "pz-button", title: t("mask.make_title"), hidden: true, onclick: () => this.#actions.makeMasks() },
    t("mask.make"));
  #error = element("div", { class: "pz-error", role: "alert", hidden: true });
  #grid = element("div", { class: "pz-tray-grid", role: "list" });
  #note = element("div", { class: "pz-message", role: "status", hidden: true });
  #findings = new Findings();
  #hint = element("div", { class: "pz-tray-hint" }, t("tray.hint"));
  #chooser = element("input", {
    type: "file", multiple: "", accept: ACCEPTED, hidden: true, onchange: () => this.#onChosen() });

  /** @param actions {add(files), remove(name), useAll(), makeMasks(), paint(name), caption(name, text)} */
  constructor(actions) {
    this.#actions = { ...actions, select: (name) => this.#select(name) };
    const choose = button({ class: "pz-button", title: t("tray.choose_title"), onclick: () => this.#chooser.click() },
      icon("upload"), ` ${t("tray.choose")}`);
    this.root.append(
      element("div", { class: "pz-row" }, this.#count, element("div", { class: "pz-group" }, this.#all, this.#masks, this.#make, choose)),
      this.#error, this.#note, this.#findings.root, this.#hint, this.#grid, this.#chooser);
    walkWithArrows(this.#grid, ".pz-tray-item", ".pz-tray-thumb", ({ dataset }) => actions.remove(dataset.name));
    this.root.addEventListener("dragover", (event) => this.#onDrag(event));
    this.root.addEventListener("dragleave", () => this.root.classList.remove("pz-dropping"));
    this.root.addEventListener("drop", (event) => this.#onDrop(event));
  }

  /** @param pictures [{name, url, caption, readOnly}] @param available how many pictures the folder holds
   *  @param crop "middle", "random" or "" for none */
  show(pictures, available, crop) {
    setText(this.#count, t("tray.count", { count: pictures.length }));
    setText(this.#all, t("tray.use_all", { count: available }));
    this.#all.hidden = available <= pictures.length;
    this.#hint.hidden = pictures.length > 0;
    this.#make.hidden = !pictures.some(({ readOnly }) => !readOnly);
    const former = this.#items;
    this.#items = new Map(pictures.map(({ name }) => [name, former.get(name) ?? new TrayItem(name, this.#actions)]));
    for (const picture of pictures) {
      this.#items.get(picture.name).show(picture);
      this.#items.get(picture.name).showCrop(crop);
    }
    this.#order([...this.#items.values()].map(({ root }) => root));
    this.#showMarks();
  }

  /** @param findings what the server's check found, or null while it is not known */
  showFindings(findings) {
    this.#found = findings;
    this.#showMarks();
  }

  /** @param urls {picture: address of what darkens all but the subject} */
  showMasks(urls) {
    this.#maskUrls = urls;
    this.#masks.hidden = !Object.keys(urls).length;
    setPressed(this.#masks, this.#areMasksShown);
    this.root.classList.toggle("pz-without-masks", !this.#areMasksShown);
    for (const [name, item] of this.#items) item.showMask(urls[name] ?? "");
  }

  /** A caption that was not saved stands there again as it was. */
  revertCaption(name) {
    this.#items.get(name)?.revert();
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

  /** What was found may still change, and with it where the pictures lie. */
  showChecking(isChecking) {
    this.#findings.root.setAttribute("aria-busy", String(isChecking));
  }

  showBusy(isBusy) {
    this.root.setAttribute("aria-busy", String(isBusy));
  }

  /** Moves only what is not in its place, so that a caption that is being written keeps the cursor. */
  #order(wanted) {
    for (const child of [...this.#grid.children]) if (!wanted.includes(child)) child.remove();
    wanted.forEach((root, place) => {
      if (this.#grid.children[place] !== root) this.#grid.insertBefore(root, this.#grid.children[place] ?? null);
    });
  }

  #select(name) {
    this.#selected = this.#selected === name ? "" : name;
    if (this.#selected && remarksAbout(this.#found, name).length) this.#findings.open();
    this.#showMarks();
  }

  #showMarks() {
    this.#findings.show(this.#items.size ? this.#found : null, this.#selected);
    for (const [name, item] of this.#items) item.showMarks(remarksAbout(this.#found, name), name === this.#selected);
  }

  #toggleMasks() {
    this.#areMasksShown = !this.#areMasksShown;
    this.showMasks(this.#maskUrls);
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
