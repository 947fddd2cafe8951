/** The section of the training panel that tells where the run is, and commands it. */
import { button, element, icon, setText } from "../shared/dom.js";
import { t } from "../shared/texts.js";
import { formatDuration, formatNumber } from "./format.js";
import { sendCommand } from "./server.js";

const COMMANDS = { stop: "stop-circle", save: "save", sample: "image" }; // and their icons

export class StatusSection {
  root;
  #panel;
  #note = "";
  #isStopping = false;
  #state = element("span", { class: "pz-state" });
  #figures = element("span", { class: "pz-figures" });
  #progress = element("progress", { max: "1", value: "0", "aria-label": t("panel.progress") });
  #error = element("div", { class: "pz-error", role: "alert" });
  #message = element("div", { class: "pz-message", role: "status" });
  #commands = Object.entries(COMMANDS).map(([command, name]) => button({
    class: "pz-button", title: t(`command.${command}_title`), "data-command": command,
    onclick: () => this.#send(command) }, icon(name), " ", t(`command.${command}`)));

  constructor(panel) {
    this.#panel = panel;
    this.root = element("div", { class: "pz-section" },
      element("div", { class: "pz-row" }, this.#state, this.#figures), this.#progress, this.#error, this.#message,
      element("div", { class: "pz-row" },
        element("div", { class: "pz-group", role: "group", "aria-label": t("command.label") }, ...this.#commands)));
  }

  render({ history }) {
    const last = history.records.at(-1);
    setText(this.#state, this.#stateText(history));
    const figures = last ? [t("panel.loss", { loss: formatNumber(last.loss) })] : [];
    const left = history.phase === "training" ? formatDuration(last?.seconds_left) : "";
    if (left) figures.push(t("panel.time_left", { time: left }));
    setText(this.#figures, figures.join(" · "));
    this.#progress.value = history.total ? Math.min(history.step / history.total, 1) : 0;
    this.#progress.hidden = !last && !history.isRunning;
    const isOff = history.phase !== "training" || this.#isStopping;
    for (const command of this.#commands) command.disabled = isOff;
    this.#renderMessages(history);
  }

  /** No run is in progress that a command could reach. */
  forgetCommands() {
    this.#isStopping = false;
    this.#note = "";
  }

  #stateText(history) {
    if (history.phase === "preparing") return t("panel.preparing");
    if (!history.step) return history.isRunning ? t("panel.step", { step: 0, total: history.total }) : history.run;
    const place = t("panel.step", { step: history.step, total: history.total || history.step });
    if (history.isRunning) return this.#isStopping ? t("panel.stopping", { place }) : place;
    const end = history.isUnfinished ? (history.isStopped ? "stopped" : "interrupted") : "finished";
    return t(`ended.${end}`, { run: history.run, place });
  }

  #renderMessages({ error, message }) {
    setText(this.#error, error);
    this.#error.hidden = !error;
    const said = error ? "" : message || this.#note;
    setText(this.#message, said);
    this.#message.hidden = !said;
  }

  async #send(command) {
    if (command === "stop") this.#isStopping = true;
    this.#panel.render();
    try {
      this.#note = await sendCommand(this.#panel.history.run, command);
    } catch (problem) {
      this.#isStopping = false;
      this.#note = t("panel.not_sent", { problem: problem.message });
    }
    this.#panel.render();
  }
}
