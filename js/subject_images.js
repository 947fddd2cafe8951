/** Puts the picture tray on Subject nodes: dropped or chosen pictures are uploaded to input/<folder>/ and shown. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { onGraphChange } from "./shared/changes.js";
import { linksFrom } from "./shared/graphs.js";
import { hideWidget, loadStyle, widgetOf } from "./shared/nodes.js";
import { addPart, placesOf } from "./shared/parts.js";
import { areInFiles, typedCaption, withCaption } from "./subject/captions.js";
import { makeMasks } from "./subject/make_masks.js";
import { openMaskEditor } from "./subject/mask_editor.js";
import {
  aboutPictures, checkPictures, isCaption, isPicture, listFolder, maskUrl, pictureUrl, saveCaption, saveMask, startPainting,
  unusedFolder, uploadPictures,
} from "./subject/server.js";
import { PictureTray } from "./subject/tray.js";
import { listed, t } from "./shared/texts.js";

const NODE_TYPE = "PersonalizeSubject";
const SHOWN_NAMES = 5;
const LONGEST_NAME = 50; // letters of a new folder's name
const RESERVED_BY_WINDOWS = /^(con|prn|aux|nul|(com|lpt)[\d¹²³])$/i;
const NOTHING = { captions: {}, masks: {}, message: "" };
const PAUSE = 150; // ms: a number that is being turned is asked for once
const UNCHECKED = { findings: null, masked: [], sizes: {} };
const EMPTY = { pictures: [], count: 0, place: "nowhere", message: "", left_out: "", folder: "" };

/** The pictures of one node. Its widgets `folder` and `picture_files` say which; the tray shows them. */
class NodePictures {
  #place;
  #listing = EMPTY;
  #refreshes = 0;
  #checks = 0;
  #about = NOTHING;
  #found = UNCHECKED;

  constructor(place) {
    this.#place = place;
    this.tray = new PictureTray({
      add: (files) => this.add(files), remove: (name) => this.#choose(this.#shown().filter((other) => other !== name)),
      useAll: () => this.#useAll(), caption: (name, text) => this.#saveCaption(name, text), paint: (name) => this.#paint(name),
      makeMasks: () => this.#makeMasks() });
  }

  /** Asks the server again what the folder holds, and shows it. */
  async refresh() {
    const turn = ++this.#refreshes;
    const folder = this.#value("folder");
    this.tray.showChecking(true);
    const failed = (problem) => ({ ...EMPTY, message: problem.message });
    const listing = folder ? await listFolder(folder).catch(failed) : EMPTY;
    if (turn !== this.#refreshes) return; // a later question has been asked since
    this.#listing = { ...listing, folder };
    this.tray.showError(listing.message);
    this.tray.showNote(this.#chosen().length ? "" : listing.left_out);
    this.#show();
    this.#learn().then(() => this.check()); // nobody waits for it
  }

  /** Asks the server what may spoil the pictures, as the widgets would have them prepared, and shows it. */
  async check() {
    const turn = ++this.#checks;
    const folder = this.#value("folder");
    this.tray.showChecking(true);
    this.#show();
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    if (turn !== this.#checks || folder !== this.#listing.folder) return;
    const how = { size: Number(this.#value("size")), fit: this.#value("fit"), augmentation: this.#value("augmentation") };
    const isAny = this.#shown().length && !this.#about.message;
    const found = isAny ? await checkPictures(folder, this.#value("picture_files"), how).catch(() => UNCHECKED) : UNCHECKED;
    if (turn !== this.#checks) return;
    this.#found = found;
    this.showFindings();
    const urls = found.masked.map((name) => [name, maskUrl(folder, name, this.#about.masks[name] ?? "")]);
    this.tray.showMasks(Object.fromEntries(urls));
    this.tray.showChecking(false);
  }

  /** What was found, as far as it matters: of a picture that is only drawn from nobody wants five. */
  showFindings() {
    const isOnlyDrawnFrom = this.#isLinked("images") && !this.#isLinked("subject");
    const { findings } = this.#found;
    this.tray.showFindings(isOnlyDrawnFrom && findings ? findings.filter(({ code }) => code !== "few") : findings);
  }

  #isLinked(output) {
    const { node } = this.#place;
    const slot = node.outputs?.findIndex(({ name }) => name === output) ?? -1;
    return slot >= 0 && linksFrom(node, slot).length > 0;
  }

  /** Asks the server for what lies beside the pictures. */
  async #learn() {
    const turn = this.#refreshes;
    const about = this.#shown().length ? await aboutPictures(this.#value("folder"), this.#value("picture_files"))
      .catch((problem) => ({ ...NOTHING, message: problem.message })) : NOTHING;
    if (turn !== this.#refreshes) return;
    this.#about = about;
    if (about.message) this.tray.showError(about.message);
    this.#show();
  }

  async #saveCaption(name, text) {
    const typed = this.#value("captions");
    const shown = this.#shown();
    if (!areInFiles(typed)) {
      this.#set("captions", withCaption(typed, shown.indexOf(name), text, shown.length));
      return this.#show();
    }
    await this.#tell(() => saveCaption(this.#value("folder"), name, text), () => this.tray.revertCaption(name));
    await this.#learn();
  }

  async #paint(name) {
    const folder = this.#value("folder");
    await this.#tell(async () => {
      openMaskEditor(await startPainting(folder, name), (painted) => this.#tell(async () => {
        await saveMask(folder, name, painted);
        await this.refresh();
      }));
    });
  }

  /** Of pictures without one; masks that a person made stay. */
  async #makeMasks() {
    const { masked, sizes } = this.#found;
    const wanted = this.#shown().filter((name) => sizes[name] && !masked.includes(name));
    const pictures = wanted.map((name) => ({ name, width: sizes[name][0], height: sizes[name][1] }));
    if (!pictures.length) return this.tray.showNote(t("mask.all_there"));
    await this.#tell(async () => {
      const folder = this.#value("folder");
      const count = await makeMasks(this.#place.executionId, folder, Number(this.#value("size")), pictures, (problem) => {
        this.refresh().then(() => problem && this.tray.showError(problem));
      });
      this.tray.showNote(t("mask.queued", { count }));
    });
  }

  /** Does it, and says on the tray why it could not be done. */
  async #tell(act, undo = () => {}) {
    this.tray.showBusy(true);
    try {
      await act();
      this.tray.showError("");
    } catch (failure) {
      undo();
      this.tray.showError(failure.message);
    } finally {
      this.tray.showBusy(false);
    }
  }

  /** Uploads pictures and captions, into a new folder if none is chosen. */
  async add(files) {
    const usable = files.filter((file) => isPicture(file) || isCaption(file));
    const strange = files.filter((file) => !usable.includes(file)).map((file) => file.name);
    const named = { names: someOf(strange), count: strange.length };
    const problem = strange.length ? t("tray.not_pictures", named) : "";
    if (!usable.length) return this.tray.showError(problem);
    this.tray.showBusy(true);
    try {
      const folder = await this.#folderForUploads();
      const names = await uploadPictures(usable, folder);
      const chosen = folder === this.#value("folder") ? this.#chosen() : [];
      this.#setFolder(folder);
      this.#set("picture_files", chosen.length ? asLines([...new Set([...chosen, ...names])]) : "");
      await this.refresh();
      if (problem) this.tray.showError(problem);
    } catch (failure) {
      await this.refresh();
      this.tray.showError(failure.message);
    } finally {
      this.tray.showBusy(false);
    }
  }

  /** A widget was changed by hand. */
  onChanged(name) {
    if (name === "folder") this.#onFolderChanged();
    else if (name === "captions") this.#show();
    else this.check();
  }

  /** The names chosen from the former folder mean nothing in this one. */
  #onFolderChanged() {
    this.#set("picture_files", "");
    this.refresh();
  }

  async #folderForUploads() {
    const folder = this.#value("folder");
    const isOwn = folder && (await listFolder(folder)).place !== "example";
    return isOwn ? folder : unusedFolder(this.#nameOfConcept());
  }

  /** "<my-dog>" of the Concept node before this one gives "my-dog". */
  #nameOfConcept() {
    const { node } = this.#place;
    const link = node.inputs?.findIndex((input) => input.name === "concept") ?? -1;
    const concept = link >= 0 ? node.getInputNode(link) : null;
    const placeholder = String(widgetOf(concept, "placeholder")?.value ?? "").normalize("NFC");
    const name = [...placeholder.replace(/[^\p{L}\p{M}\p{N}_-]+/gu, "")].slice(0, LONGEST_NAME).join("");
    return RESERVED_BY_WINDOWS.test(name) ? `${name}_` : name || "my-subject";
  }

  #choose(names) {
    const { pictures, count } = this.#listing;
    const isAll = names.length === count && names.every((name) => pictures.includes(name));
    this.#set("picture_files", isAll ? "" : asLines(names));
    if (!names.length) this.#setFolder(""); // an empty choice would mean all of the folder
    this.refresh();
  }

  #useAll() {
    this.#set("picture_files", "");
    this.refresh();
  }

  #setFolder(folder) {
    const values = this.#place.widget("folder").options?.values;
    if (Array.isArray(values) && !values.includes(folder)) values.push(folder);
    this.#set("folder", folder);
  }

  #show() {
    const { count, place, folder } = this.#listing;
    if (folder !== this.#value("folder")) return; // it has not been asked yet what that one holds
    const readOnly = place === "example" ? t("tray.example_stays") : "";
    const pictures = this.#shown().map((name, number) => (
      { name, url: pictureUrl(folder, name, place), caption: this.#caption(name, number), readOnly }));
    const crop = this.#value("augmentation") === "as released" ? "random" : "middle";
    this.tray.show(pictures, count, this.#value("fit") === "crop" ? crop : "");
  }

  #caption(name, number) {
    const typed = this.#value("captions");
    return areInFiles(typed) ? this.#about.captions[name] ?? "" : typedCaption(typed, number);
  }

  #shown() {
    const chosen = this.#chosen();
    return chosen.length ? chosen : this.#listing.pictures;
  }

  #chosen() {
    const lines = this.#value("picture_files").split("\n").filter((line) => line.trim());
    return lines.map((line) => line.replaceAll("\\n", "\n").replaceAll("\\r", "\r"));
  }

  #value(name) {
    return String(this.#place.widget(name)?.value ?? "");
  }

  #set(name, value) {
    this.#place.widget(name).value = value;
    this.#place.host.setDirtyCanvas(true, true);
  }
}

addPart({
  name: "thumbnails", nodeTypes: [NODE_TYPE], minHeight: 320, minWidth: 400, outside: true, order: 1, first: true,
  create: pictureTray });

app.registerExtension({
  name: "personalize.subject",

  setup() {
    for (const style of ["./shared/theme.css", "./subject/tray.css"]) loadStyle(style, import.meta.url);
    api.addEventListener("execution_start", () => subjects().forEach(({ tray }) => tray.showError("")));
    api.addEventListener("execution_error", ({ detail }) => onExecutionError(detail));
  },

  refreshComboInNodes: () => subjects().forEach((subject) => subject.refresh()),
});

onGraphChange(() => subjects().forEach((subject) => subject.showFindings()));

const subjects = () => placesOf("thumbnails").map(({ part }) => part.subject);

function pictureTray(place) {
  const subject = new NodePictures(place);
  hideWidget(widgetOf(place.node, "picture_files")); // the tray shows it
  place.onChange(["folder", "size", "fit", "augmentation", "captions"],
    (name) => subject.onChanged(name));
  if (!place.host.onDragDrop) acceptDrops(place.host, subject); // of several trays on a subgraph node, the first
  return { subject, root: subject.tray.root, restore: () => subject.refresh() };
}

/** On the rest of the node, and pasted while it is selected; the tray takes what is dropped on itself. */
function acceptDrops(node, subject) {
  node.onDragOver = (event) => Boolean(event.dataTransfer?.types.includes("Files"));
  node.onDragDrop = async (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return false;
    await subject.add(files);
    return true;
  };
  node.pasteFiles = (files) => {
    subject.add([...files]);
    return true;
  };
}

function onExecutionError({ node_id, exception_message }) {
  for (const place of placesOf("thumbnails")) {
    if (place.isExecution(node_id)) place.part.subject.tray.showError(exception_message?.trim() ?? "");
  }
}

/** File names as the widget holds them: one a line, line breaks in them written out. */
const asLines = (names) => names.map((name) => name.replaceAll("\n", "\\n").replaceAll("\r", "\\r")).join("\n");

function someOf(names) {
  const more = names.length - SHOWN_NAMES;
  const shown = listed(names.slice(0, SHOWN_NAMES));
  return more > 0 ? t("tray.and_more", { names: shown, more }) : shown;
}
