/** One picture of the tray: thumbnail, what the crop keeps, mask, marks, caption. */
import { button, element, icon } from "../shared/dom.js";
import { listed, t } from "../shared/texts.js";

export class TrayItem {
  #actions;
  #name;
  #url = "";
  #caption = "";
  #image;
  #crop = element("div", { class: "pz-tray-crop", hidden: true });
  #mask = element("img", { class: "pz-tray-mask", alt: "", draggable: "false", hidden: true });
  #mark = element("span", { class: "pz-tray-mark", hidden: true }, icon("exclamation-triangle"));
  #thumb;
  #paint;
  #text;

  /** @param actions {remove(name), select(name), paint(name), caption(name, text)} */
  constructor(name, actions) {
    this.#actions = actions;
    this.#name = name;
    this.#image = element("img", { alt: "", draggable: "false", onload: () => this.#drawCrop(),
      onerror: () => this.root.classList.add("pz-unseen") });
    this.#thumb = button({ class: "pz-tray-thumb", title: name, onclick: () => actions.select(name) },
      this.#image, this.#mask, this.#crop, element("span", { class: "pz-tray-name" }, name), this.#mark);
    this.#paint = button({ class: "pz-tray-tool pz-tray-paint", onclick: () => actions.paint(name) }, icon("pencil"));
    this.#text = element("textarea", { class: "pz-tray-caption", rows: "1", placeholder: t("tray.caption"),
      "aria-label": t("tray.caption_of", { name }), spellcheck: "false",
      onkeydown: (event) => this.#onKey(event), onblur: () => this.#save() });
    this.root = element("div", { class: "pz-tray-item", role: "listitem", "data-name": name }, this.#thumb, this.#paint,
      button({ class: "pz-tray-tool pz-tray-remove", title: t("tray.leave_out_title", { name }),
        "aria-label": t("tray.leave_out", { name }), onclick: () => actions.remove(name) }, icon("times")),
      this.#text);
  }

  /** @param picture {url, caption, readOnly: why captions and masks cannot be changed, or ""} */
  show({ url, caption, readOnly }) {
    if (url !== this.#url) {
      this.#url = url;
      this.root.classList.remove("pz-unseen");
      this.#image.src = url;
    }
    this.#paint.hidden = Boolean(readOnly);
    this.#text.readOnly = Boolean(readOnly);
    this.#text.title = [caption, readOnly || t("tray.caption_title")].filter(Boolean).join("\n");
    const isEdited = this.#text.value !== this.#caption;
    this.#caption = caption;
    if (!isEdited) this.#text.value = caption;
  }

  /** @param crop "middle", "random" or "" for none */
  showCrop(crop) {
    this.#crop.dataset.place = crop;
    this.#drawCrop();
  }

  /** @param url of what darkens all but the subject, or "" */
  showMask(url) {
    this.#mask.hidden = !url;
    if (url && this.#mask.getAttribute("src") !== url) this.#mask.src = url;
    const name = this.#name;
    this.#paint.title = url ? t("mask.edit", { name }) : t("mask.paint", { name });
    this.#paint.setAttribute("aria-label", this.#paint.title);
  }

  /** @param remarks short texts about this picture */
  showMarks(remarks, isSelected) {
    this.#mark.hidden = !remarks.length;
    this.#thumb.setAttribute("aria-label", listed([this.#name, ...remarks]));
    this.#thumb.title = listed([this.#name, ...remarks]);
    this.#thumb.setAttribute("aria-pressed", String(isSelected));
  }

  #drawCrop() {
    const { naturalWidth: width, naturalHeight: height } = this.#image;
    const share = Math.min(width, height) / Math.max(width, height, 1);
    this.#crop.hidden = !this.#crop.dataset.place || !share || share > 0.99;
    this.#crop.style.setProperty("--pz-side", `${100 * share}%`);
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey) return;
    event.stopPropagation(); // the page has keys of its own
    if (event.key === "Escape") this.#text.value = this.#caption;
    if (event.key !== "Escape" && event.key !== "Enter") return;
    event.preventDefault();
    this.#text.blur();
  }

  #save() {
    const text = this.#text.value.replace(/\s+/g, " ").trim();
    this.#text.value = text;
    if (text !== this.#caption) this.#actions.caption(this.#name, text);
  }

  /** What the server did not take stands there again as it was. */
  revert() {
    this.#text.value = this.#caption;
  }
}
