/** Puts the training panel on Train nodes and leads the server's messages to it. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { onGraphChange } from "./shared/changes.js";
import { openWorkflow } from "./shared/graphs.js";
import { hideWidget, loadStyle } from "./shared/nodes.js";
import { addPart, placesOf } from "./shared/parts.js";
import { TrainingPanel } from "./training/panel.js";
import { askSoon } from "./training/plans.js";
import { keepPresetTrue } from "./training/presets.js";
import { fetchRun, fetchLastRuns } from "./training/server.js";

const USE_STEP = "use_step";
const USE_STEP_OF = "use_step_of";
const WITHOUT_ID = "00000000-0000-0000-0000-000000000000"; // of every workflow that was loaded from the API's format
const RUN = "run"; // kept with the workflow: which run to show again
/** A panel sets a choice, which all panels of the node see: that within a subgraph, and that on the subgraph's node. */
let isChoosing = false;
const STYLES = ["./shared/theme.css", "./vendor/uplot-1.6.32/uPlot.min.css", "./training/panel.css"];

addPart({
  name: "training", nodeTypes: ["PersonalizeTrain"], minHeight: 340, minWidth: 540, outside: true, order: 2, first: true,
  create: trainingPanel });

// Not in setup(): a page that is loaded during a training gets messages before that.
api.addEventListener("personalize.training", ({ detail }) => onTrainingMessage(detail));
api.addEventListener("execution_start", () => forEachPanel(forgetMessages));
api.addEventListener("execution_error", ({ detail }) => onExecutionError(detail));
api.addEventListener("executing", ({ detail }) => onExecuting(detail));
onGraphChange(() => askForPlans());
for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
  api.addEventListener(end, () => askForPlans(true));
}
globalThis.addEventListener("focus", () => askForPlans(true)); // files may have been changed meanwhile

app.registerExtension({
  name: "personalize.training",

  setup() {
    for (const style of STYLES) loadStyle(style, import.meta.url);
    const themeChanged = () => forEachPanel((panel) => panel.refreshColors());
    new MutationObserver(themeChanged).observe(document.documentElement, { attributeFilter: ["style", "class"] });
  },
});

/** @param place see shared/parts.js */
function trainingPanel(place) {
  const choice = choiceOf(place);
  const panel = new TrainingPanel(place, choice);
  place.onChange([USE_STEP], () => {
    choice.typed();
    panel.render();
  });
  panel.root.addEventListener("pointerenter", () => askForPlans(true));
  if (!place.isOutside) keepPresetTrue(place.node.widgets, (widget, value) => place.setWidget(widget.name, value));
  return {
    panel,
    root: panel.root,
    moreHeight: () => panel.moreHeight,
    restore: () => {
      hideWidget(place.widget(USE_STEP_OF));
      restore(place);
      askForPlans(true);
    },
    executed: (output) => showResult(place, output),
    remember: () => panel.history,
    recall: (history) => panel.showHistory(history),
  };
}

const askForPlans = (anew) => askSoon(() => placesOf("training"), anew);

/** Which step the node is to return, and of which run: a number that was typed is of whichever run it is. */
function choiceOf(place) {
  const run = () => place.widget(USE_STEP_OF)?.value ?? "";
  const set = (step, of) => {
    isChoosing = true;
    place.setWidget(USE_STEP_OF, step ? of : "");
    place.setWidget(USE_STEP, step);
    isChoosing = false;
    askForPlans();
  };
  const typed = () => isChoosing || place.setWidget(USE_STEP_OF, "");
  return { get: (shown) => ([shown, ""].includes(run()) ? place.widget(USE_STEP)?.value ?? 0 : 0), set, typed };
}

function showResult(place, output) {
  const [result] = output?.personalize_training ?? [];
  if (!result) return;
  place.keep(RUN, result.run);
  place.part.panel.update((history) => {
    history.finish();
    history.load(result);
  });
}

function onTrainingMessage(message) {
  for (const place of placesOf("training")) {
    if (place.isExecution(message?.node) && isRunOf(place, message)) tell(place, message);
  }
}

function tell(place, message) {
  const { panel } = place.part;
  place.keep(RUN, message.run);
  panel.update((history) => history.apply(message));
  if (message.kind === "start" && !message.resumed_from) startedOver(place);
  const continuesUnseenSteps = message.kind === "start" && message.resumed_from > panel.history.step;
  if (continuesUnseenSteps) restore(place);
}

/** "start over" is a wish for one run: with the next Run its result is returned. */
function startedOver(place) {
  if (place.widget("resume")?.value === "start over") place.setWidget("resume", "continue");
}

const forgetMessages = (panel) => panel.update((history) => history.clearMessages());

function onExecutionError({ node_id, exception_message }) {
  forEachPanel((panel, place) => {
    if (!place.isExecution(node_id)) return;
    panel.update((history) => history.error || history.fail(exception_message?.trim()));
  });
}

function onExecuting(executingId) {
  forEachPanel((panel, place) => {
    if (place.isExecution(executingId)) panel.update((history) => history.prepare());
    else if (panel.history.isRunning) panel.update((history) => history.finish());
  });
}

/** Shows the node's last run, in progress or not: after loading, or when the server came back. */
async function restore(place) {
  const last = lastRunOf(place, await fetchLastRuns());
  const run = last?.run ?? (place.part.panel.history.run || place.kept(RUN));
  const data = run ? await fetchRun(run) : null;
  if (run) place.keep(RUN, run);
  place.part.panel.update((history) => {
    if (!last?.running) history.finish();
    if (data) history.load(data);
    if (last?.running) history.proceed();
  });
}

function lastRunOf(place, runs) {
  const candidates = runs.filter(({ node }) => place.isExecution(node));
  const { id } = openWorkflow();
  const own = id === WITHOUT_ID ? undefined : candidates.find(({ workflow }) => workflow === id);
  return own ?? candidates.find(({ run }) => run === place.kept(RUN));
}

/** Whether a run is this node's, and not that of a node with the same id in another workflow. */
function isRunOf(place, { run, workflow }) {
  return run === place.kept(RUN) || workflow === openWorkflow().id;
}

function forEachPanel(visit) {
  for (const place of placesOf("training")) visit(place.part.panel, place);
}
