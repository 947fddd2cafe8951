/**
 * What is drawn on a Train node: a column of sections.
 *
 * A section is {root: its element, render(panel): draws it anew}. It asks the panel for everything: `history` of the run,
 * `plan` of what Run will do, `estimate` of what it needs, `place` where it is drawn (shared/parts.js), `chosenStep()` and `choose(step)`.
 */
import { element } from "../shared/dom.js";
import { t } from "../shared/texts.js";
import { ChartSection } from "./chart_section.js";
import { EstimateSection } from "./estimate.js";
import { PictureGrid } from "./grid.js";
import { RunHistory } from "./history.js";
import { PlanSection } from "./plan_section.js";
import { StatusSection } from "./status.js";

const REDRAW_EVERY_MS = 100;
const HEADING = 42; // pixels above the pictures
const TEXTS = 130; // pixels that a panel always has for its texts, beside the chart at its lowest
const NO_ESTIMATE = { idle: [], problem: "", need: null };

export class TrainingPanel {
  history = new RunHistory();
  /** What Run will do, as the server tells it (nodes/training/told_plan.py); null while it is not known. */
  plan = null;
  /** What a training needs and which settings cannot act, as the server tells it (nodes/training/estimate_routes.py). */
  estimate = NO_ESTIMATE;
  root = element("div", { class: "pz-theme pz-panel", role: "region", "aria-label": t("panel.label") });
  place;
  /** Pixels that it needs beside those which a panel always has. */
  moreHeight = 0;
  #choice;
  #redrawTimer = 0;
  #status;
  #chart;
  #pictures;
  #texts;
  #sections;

  /** @param place see shared/parts.js @param choice {get(run): step, set(step, run)} of what the node returns */
  constructor(place, choice) {
    this.place = place;
    this.#choice = choice;
    this.#status = new StatusSection(this);
    this.#chart = new ChartSection(this);
    this.#pictures = new PictureGrid(this);
    this.#texts = [new PlanSection(this), this.#status, new EstimateSection(this)];
    this.#sections = [...this.#texts, this.#chart, this.#pictures];
    this.root.append(...this.#sections.map((section) => section.root));
    this.render();
  }

  /** The step of the run shown that the node is set to return, 0 for none: a choice belongs to its run. */
  chosenStep() {
    return this.plan?.choice?.void ? 0 : this.#choice.get(this.history.run);
  }

  /** @param step of the run shown, 0 for no choice */
  choose(step) {
    this.#choice.set(step, this.history.run);
    this.render();
  }

  showPlan(plan) {
    this.plan = plan;
    this.render();
  }

  /** @param estimate null where there is none */
  showEstimate(estimate) {
    this.estimate = estimate ?? NO_ESTIMATE;
    this.render();
  }

  /** Change the history and show it; many changes in a short time are drawn once. */
  update(change) {
    change(this.history);
    if (!this.history.isRunning) this.#status.forgetCommands();
    this.#redrawTimer ||= setTimeout(() => this.render(), REDRAW_EVERY_MS);
  }

  /** Go on with a history that is known already, as after undo. */
  showHistory(history) {
    this.history = history;
    this.render();
  }

  /** Draw everything now. */
  render() {
    clearTimeout(this.#redrawTimer);
    this.#redrawTimer = 0;
    for (const section of this.#sections) section.render(this);
    this.#measure();
  }

  #measure() {
    const before = this.moreHeight;
    const pictures = this.history.previews.length ? this.#pictures.height + HEADING : 0;
    let texts = this.#chart.legendHeight;
    for (const { root } of this.#texts) texts += root.offsetHeight;
    this.moreHeight = pictures + Math.max(0, texts - TEXTS);
    if (this.history.run && this.moreHeight > before) this.place.grow();
  }

  /** The theme's colours are others now. */
  refreshColors() {
    this.#chart.refresh();
  }
}
