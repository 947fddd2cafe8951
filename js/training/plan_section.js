/** The section of the training panel that says what Run will do, with what a person may want instead. */
import { app } from "../../../scripts/app.js";
import { button, element, icon, setText } from "../shared/dom.js";
import { walk } from "../shared/graphs.js";
import { t } from "../shared/texts.js";
import { continueRun } from "./server.js";

export class PlanSection {
  root;
  #panel;
  #line = element("span", { class: "pz-plan-line" });
  #void = element("span", { class: "pz-plan-void" });
  #continue = button({ class: "pz-button", "data-act": "continue", onclick: () => this.#goOn() });
  #forget = button({ class: "pz-button", "data-act": "forget", onclick: () => this.#panel.choose(0) }, t("plan.forget"));
  #problem = "";

  constructor(panel) {
    this.#panel = panel;
    this.root = element("div", { class: "pz-section pz-plan", role: "status" },
      this.#void, element("div", { class: "pz-row" }, this.#line,
        element("div", { class: "pz-group" }, this.#continue, this.#forget)));
  }

  render({ plan, history }) {
    this.root.hidden = !plan || history.isRunning;
    if (this.root.hidden) return;
    const { choice } = plan;
    setText(this.#line, this.#problem || planText(plan));
    setText(this.#void, choice?.void ? t(`plan.void_${choice.void}`, { step: choice.step, run: choice.run }) : "");
    this.#void.hidden = !choice?.void;
    const left = plan.steps - plan.step;
    const goesOn = plan.act === "continues" || plan.why === "stopped";
    this.#continue.hidden = !goesOn;
    if (goesOn) {
      this.#continue.replaceChildren(icon("play"), " ", t("plan.continue"));
      this.#continue.title = t("plan.continue_title", { count: left, step: plan.step, steps: plan.steps });
    }
    this.#forget.hidden = !choice?.step || (plan.why !== "chosen" && !choice.void);
  }

  async #goOn() {
    this.#problem = "";
    this.#continue.disabled = true;
    try {
      await continueRun(this.#panel.plan.run);
      await app.queuePrompt(0, 1);
    } catch (problem) {
      this.#problem = problem.message;
    }
    this.#continue.disabled = false;
    this.#panel.render();
  }
}

function planText({ act, why, step, steps, node, input }) {
  if (act === "returns") return t(`plan.returns_${why}`, { step, steps });
  if (act === "continues") return t("plan.continues", { step, steps, count: steps - step });
  if (act === "trains") return t("plan.trains", { count: steps });
  if (act === "starts over") return t("plan.starts_over", { count: steps });
  if (act === "fails") return t("plan.fails", { step });
  const title = walk(node).at(-1)?.title ?? node;
  if (act === "incomplete") return t("plan.incomplete", { input, node: title });
  if (act === "refused") return t("plan.refused", { node: title });
  return t("plan.unknown", { node: title });
}
