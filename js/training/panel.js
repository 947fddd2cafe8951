/**
 * What is drawn on a Train node: a column of sections.
 *
 * A section is {root: its element, render(panel): draws it anew}. It asks the panel for everything: `history` of the run,
 * `place` where it is drawn (shared/parts.js), `chosenStep()` and `choose(step)`.
 */
import { element } from "../shared/dom.js";
import { t } from "../shared/texts.js";
import { ChartSection } from "./chart_section.js";
import { EstimateSection } from "./estimate.js";
import { RunHistory } from "./history.js";
import { PreviewStrip } from "./previews.js";
import { StatusSection } from "./status.js";

const REDRAW_EVERY_MS = 100;

export class TrainingPanel {
  history = new RunHistory();
  root = element("div", { class: "pz-theme pz-panel", role: "region", "aria-label": t("panel.label") });
  place;
  #choice;
  #redrawTimer = 0;
  #status;
  #chart;
  #sections;

  /** @param place see shared/parts.js @param choice {get(): step, set(step)} of what the node returns */
  constructor(place, choice) {
    this.place = place;
    this.#choice = choice;
    this.#status = new StatusSection(this);
    this.#chart = new ChartSection(this);
    this.#sections = [this.#status, new EstimateSection(this), this.#chart, new PreviewStrip(this)];
    this.root.append(...this.#sections.map((section) => section.root));
    this.render();
  }

  /** The step that the node is set to return, 0 for the last. */
  chosenStep() {
    return this.#choice.get();
  }

  choose(step) {
    this.#choice.set(step);
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
  }

  /** The theme's colours are others now. */
  refreshColors() {
    this.#chart.refresh();
  }
}
