/** Puts the training panel on Train nodes and leads the server's messages to it. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { TrainingPanel } from "./training/panel.js";
import { keepPresetTrue } from "./training/presets.js";
import { fetchRun, fetchRunsInProgress } from "./training/server.js";

const NODE_TYPE = "PersonalizeTrain";
const RUN_PROPERTY = "personalize_run"; // saved with the workflow: which run to show again
const MIN_HEIGHT = 500;
const MIN_WIDTH = 520;
const STYLES = ["./vendor/uplot-1.6.32/uPlot.min.css", "./training/panel.css"];

/** node → its panel */
const panels = new Map();

app.registerExtension({
  name: "personalize.training",

  setup() {
    for (const style of STYLES) loadStyle(style);
    api.addEventListener("personalize.training", ({ detail }) => onTrainingMessage(detail));
    api.addEventListener("execution_start", () => forEachPanel((panel) => panel.update((history) => history.clearMessages())));
    api.addEventListener("execution_error", ({ detail }) => onExecutionError(detail));
    api.addEventListener("executing", ({ detail }) => onExecuting(detail));
    api.addEventListener("reconnected", () => forEachPanel((panel, node) => restore(node)));
    const themeChanged = () => forEachPanel((panel) => panel.refreshColors());
    new MutationObserver(themeChanged).observe(document.documentElement, { attributeFilter: ["style", "class"] });
  },

  nodeCreated(node) {
    if (node.comfyClass === NODE_TYPE) attachPanel(node);
  },

  loadedGraphNode(node) {
    if (node.comfyClass === NODE_TYPE) restore(node);
  },
});

function attachPanel(node) {
  const setUseStep = (step) => setWidget(node, "use_step", step);
  const panel = new TrainingPanel({ getUseStep: () => widgetOf(node, "use_step")?.value ?? 0, setUseStep });
  panels.set(node, panel);
  const widget = node.addDOMWidget("training", "PERSONALIZE_TRAINING", panel.root, {
    serialize: false, // not into the prompt
    hideOnZoom: false,
    hideInPanel: true, // the side panel would draw it a second time and change its width
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false; // not into the saved workflow
  letCanvasHaveWheelAndMiddleButton(panel.root);
  node.setSize([Math.max(node.size[0], MIN_WIDTH), node.computeSize()[1]]);
  chain(node, "onExecuted", (output) => showResult(node, output));
  chain(node, "onRemoved", () => panels.delete(node));
  chain(widgetOf(node, "use_step"), "callback", () => panel.render());
  keepPresetTrue(node.widgets, (widget, value) => setWidget(node, widget.name, value));
}

function showResult(node, output) {
  const [result] = output?.personalize_training ?? [];
  if (!result) return;
  node.properties[RUN_PROPERTY] = result.run;
  panels.get(node)?.update((history) => {
    history.finish();
    history.load(result);
  });
}

function onTrainingMessage(message) {
  const node = findNode(message?.node);
  const panel = panels.get(node);
  if (!panel) return;
  node.properties[RUN_PROPERTY] = message.run;
  panel.update((history) => history.apply(message));
  const continuesUnseenSteps = message.kind === "start" && message.resumed_from > panel.history.step;
  if (continuesUnseenSteps) restore(node);
}

function onExecutionError({ node_id, exception_message }) {
  const panel = panels.get(findNode(node_id));
  panel?.update((history) => history.error || history.fail(exception_message?.trim()));
}

function onExecuting(executingId) {
  const executing = findNode(executingId);
  forEachPanel((panel, node) => {
    if (node === executing) panel.update((history) => history.prepare());
    else if (panel.history.isRunning) panel.update((history) => history.finish());
  });
}

/** Shows the node's run in progress, or else its last one: after a workflow or the page was loaded, or the server came back. */
async function restore(node) {
  const inProgress = (await fetchRunsInProgress()).find((entry) => findNode(entry.node) === node);
  const run = inProgress?.run ?? node.properties[RUN_PROPERTY];
  const data = run ? await fetchRun(run) : null;
  panels.get(node)?.update((history) => {
    if (!inProgress) history.finish();
    if (data) history.load(data);
    if (inProgress) history.proceed();
  });
}

/** @param executionId "12", or "5:12" for node 12 in the subgraph of node 5 */
function findNode(executionId) {
  if (executionId === null || executionId === undefined) return null;
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

function forEachPanel(visit) {
  for (const [node, panel] of panels) visit(panel, node);
}

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
  node.setDirtyCanvas(true, true);
}

/** Calls `after` after the function `name` of `owner`, with the same arguments. */
function chain(owner, name, after) {
  const before = owner?.[name];
  if (!owner) return;
  owner[name] = function (...values) {
    const answer = before?.apply(this, values);
    after(...values);
    return answer;
  };
}

/** As ComfyUI's own text boxes do; Nodes 2.0 does it for every widget. */
function letCanvasHaveWheelAndMiddleButton(root) {
  const isMiddle = (event) => event.button === 1 || (event.buttons & 4) !== 0;
  const forward = (type, isMeant, process) => root.addEventListener(type, (event) => {
    if (globalThis.LiteGraph?.vueNodesMode || !isMeant(event)) return;
    event.preventDefault();
    app.canvas[process](event);
  });
  forward("wheel", (event) => !event.shiftKey, "processMouseWheel");
  forward("pointerdown", isMiddle, "processMouseDown");
  forward("pointermove", isMiddle, "processMouseMove");
  forward("pointerup", isMiddle, "processMouseUp");
}

function loadStyle(path) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL(path, import.meta.url).href;
  document.head.append(link);
}
