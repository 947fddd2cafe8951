import { t } from "../shared/texts.js";

/** More than a chart has pixels; a run may have 100 000. */
const MOST_RECORDS = 2000;

/**
 * What the server has told about a training run, added up. Knows nothing of the page.
 *
 * Messages arrive while the run goes on (`apply`); a whole run arrives after execution, when a cached result is shown
 * again, and when the page is loaded in mid-run (`load`).
 */
export class RunHistory {
  run = "";
  total = 0;
  /** Step records in order, of many a part: {step, loss, parts, norms, lr, seconds_left}; null in place of NaN. */
  records = [];
  /** Drawn pictures by step: {step, prompt, noise, image: {filename, subfolder, type}, version}. */
  previews = [];
  /** Photographs of the subjects: {image, version}. */
  photographs = [];
  /** What pictures take, as the server says: {seconds, share, expected, bound, every, asked, pictures, wanted}. */
  cost = null;
  /** Saved files in order: {step, embeddings: ["embedding:…"], files, isWhole: nothing was too large to be saved}. */
  saved = [];
  /** "idle", "preparing" (the node runs, no step yet) or "training". */
  phase = "idle";
  message = "";
  error = "";
  /** Whether a person stopped it. */
  isStopped = false;

  /** The last step that is known to be done, 0 when none is. */
  get step() {
    return this.records.at(-1)?.step ?? 0;
  }

  /** Whether it ended before its last step. */
  get isUnfinished() {
    return !this.isRunning && this.step < this.total;
  }

  get isRunning() {
    return this.phase !== "idle";
  }

  /** Whether the node can be set to return this step: all that was trained is in its files. */
  canReturn(step) {
    return step > 0 && this.saved.some((entry) => entry.step === step && entry.isWhole);
  }

  /** Add one message of the server. Unknown kinds are left alone. */
  apply(data) {
    const handlers = {
      start: () => this.#start(data),
      steps: () => data.records.forEach((record) => this.#step(record, data.run)),
      preview: () => insertPicture(this.previews, pictureEntry(data, Date.now())),
      photographs: () => (this.photographs = data.images.map((image) => ({ image, version: Date.now() }))),
      cost: () => (this.cost = data.cost),
      saved: () => insertByStep(this.saved, savedEntry(data)),
      end: () => this.#end(data),
      error: () => this.fail(data.message),
    };
    if (Object.hasOwn(handlers, data.kind)) handlers[data.kind]();
  }

  /** The node begins to execute; what the last run said is no longer news. */
  prepare() {
    this.phase = "preparing";
    this.clearMessages();
  }

  /** The run is known to be in progress. */
  proceed() {
    this.phase = "training";
  }

  /** Nothing executes on the node any more. */
  finish() {
    this.phase = "idle";
  }

  fail(sentence) {
    this.phase = "idle";
    this.message = "";
    this.error = sentence || t("panel.failed");
  }

  clearMessages() {
    this.message = "";
    this.error = "";
  }

  /** Show a whole run: {run, history, previews, saved, message}. Steps of a run in progress that are newer stay. */
  load(data) {
    const records = [...(data.history ?? [])].sort(bySteps);
    const last = records.at(-1)?.step ?? 0;
    const isSameRun = data.run === this.run;
    if (isSameRun && this.isRunning) records.push(...this.records.filter((record) => record.step > last));
    const known = new Map(isSameRun ? [...this.previews, ...this.photographs].map((each) => [nameOf(each), each]) : []);
    const versionOf = (each) => known.get(nameOf(each))?.version ?? Date.now();
    this.run = data.run ?? this.run;
    this.records = records;
    this.previews = [...(data.previews ?? [])].sort(bySteps).map((entry) => pictureEntry(entry, versionOf(entry)));
    this.photographs = (data.photographs ?? []).map((image) => ({ image, version: versionOf({ image }) }));
    this.cost = data.picture_cost ?? null;
    this.saved = [...(data.saved ?? [])].sort(bySteps).map(savedEntry);
    this.message = data.message ?? "";
    this.isStopped = Boolean(data.stopped?.step);
    this.total = data.stopped?.steps ?? data.total ?? records.at(-1)?.total ?? last;
  }

  #start(data) {
    const done = data.run === this.run ? data.resumed_from ?? 0 : 0;
    const before = (entries) => (done ? entries.filter((entry) => entry.step <= done) : []);
    this.records = before(this.records);
    this.previews = before(this.previews);
    this.saved = before(this.saved);
    if (data.run !== this.run) this.photographs = [];
    this.cost = null;
    this.run = data.run;
    this.total = data.total;
    this.phase = "training";
    this.isStopped = false;
    this.clearMessages();
  }

  #step(record, run) {
    this.run = run;
    this.total = record.total ?? this.total;
    this.phase = "training";
    insertByStep(this.records, record);
    this.#thin();
  }

  /** Of the records before the newest, keeps one of those that lie together in a long run: one with gradient norms. */
  #thin() {
    const width = Math.ceil(this.total / MOST_RECORDS);
    if (width < 2 || this.records.length < 4) return;
    const [older, later] = this.records.slice(-3, -1);
    const place = ({ step }) => Math.floor((step - 1) / width);
    if (place(older) === place(later)) this.records.splice(hasNorms(older) && !hasNorms(later) ? -2 : -3, 1);
  }

  #end(data) {
    this.phase = "idle";
    this.total = data.total ?? this.total;
    this.message = data.message ?? "";
    this.isStopped = Boolean(data.stopped);
  }
}

const hasNorms = ({ norms }) => Object.keys(norms ?? {}).length > 0;

const bySteps = (left, right) => left.step - right.step;

const savedEntry = ({ step, embeddings, files, part_files, left_out }) => ({
  step, embeddings: embeddings ?? [], files: [...(files ?? []), ...(part_files ?? [])], isWhole: !left_out });

/** Keeps the list in order, with one entry per step: the newer one. */
function insertByStep(entries, entry) {
  let index = entries.length;
  while (index > 0 && entries[index - 1].step > entry.step) index -= 1;
  const isKnown = index > 0 && entries[index - 1].step === entry.step;
  entries.splice(isKnown ? index - 1 : index, isKnown ? 1 : 0, entry);
}

/** A version makes the browser fetch a file of the same name again. */
const pictureEntry = ({ step, image, prompt, noise }, version) => ({
  step, image, prompt: prompt ?? "", noise: noise ?? 0, version });

const nameOf = ({ image }) => image?.filename;

/** Keeps pictures by step, those of a step as they came, with one of each name: the newer one. */
function insertPicture(entries, entry) {
  const known = entries.findIndex((other) => other.step === entry.step && nameOf(other) === nameOf(entry));
  if (known >= 0) entries[known] = entry;
  else entries.splice(entries.findLastIndex((other) => other.step <= entry.step) + 1, 0, entry);
}
