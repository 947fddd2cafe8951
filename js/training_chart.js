/** Puts the training panel on Train nodes and leads the server's messages to it. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { chain, loadStyle, takePlaceOfFormer, widgetOf } from "./shared/nodes.js";
import { TrainingPanel } from "./training/panel.js";
import { keepPresetTrue } from "./training/presets.js";
import { fetchRun, fetchRunsInProgress } from "./training/server.js";

const NODE_TYPE = "PersonalizeTrain";
const RUN_PROPERTY = "personalize_run"; // saved with the workflow: which run to show again
const MIN_HEIGHT = 500;
const MIN_WIDTH = 540;
const STYLES = ["./shared/theme.css", "./vendor/uplot-1.6.32/uPlot.min.css", "./training/panel.css"];

/** node → its panel */
const panels = new Map();
/** node → names under which it has been queued, as the name may be changed before its turn comes */
const queuedNames = new WeakMap();

// Not in setup(): a page that is loaded during a training gets messages before that.
api.addEventListener("personalize.training", ({ detail }) => onTrainingMessage(detail));
api.addEventListener("promptQueued", () => forEachPanel((_, node) => rememberName(node)));
api.addEventListener("execution_start", () => forEachPanel(forgetMessages));
api.addEventListener("execution_error", ({ detail }) => onExecutionError(detail));
api.addEventListener("executing", ({ detail }) => onExecuting(detail));
api.addEventListener("reconnected", () => forEachPanel((_, node) => restore(node)));

app.registerExtension({
  name: "personalize.training",

  setup() {
    for (const style of STYLES) loadStyle(style, import.meta.url);
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
  const panel = new TrainingPanel(node, {
    get: () => widgetOf(node, "use_step")?.value ?? 0, set: (step) => setWidget(node, "use_step", step) });
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
  chain(node, "onAdded", () => takePlaceOfFormer(node, panel.root, ".pz-panel"));
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
  if (!panel || !isRunOf(node, message)) return;
  node.properties[RUN_PROPERTY] = message.run;
  panel.update((history) => history.apply(message));
  const continuesUnseenSteps = message.kind === "start" && message.resumed_from > panel.history.step;
  if (continuesUnseenSteps) restore(node);
}

const forgetMessages = (panel) => panel.update((history) => history.clearMessages());

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

/** Shows the node's run in progress, or else its last one: after loading, or when the server came back. */
async function restore(node) {
  const isOurs = (entry) => findNode(entry.node) === node && isRunOf(node, entry);
  const inProgress = (await fetchRunsInProgress()).find(isOurs);
  const run = inProgress?.run ?? node.properties[RUN_PROPERTY];
  const data = run ? await fetchRun(run) : null;
  node.properties[RUN_PROPERTY] = run;
  panels.get(node)?.update((history) => {
    if (!inProgress) history.finish();
    if (data) history.load(data);
    if (inProgress) history.proceed();
  });
}

/** Whether a run is this node's, and not that of a node with the same id in another workflow. */
function isRunOf(node, { run, name }) {
  const isNameLinked = node.inputs?.some((input) => input.widget?.name === "name" && input.link != null);
  const isKnown = run === node.properties[RUN_PROPERTY];
  return isKnown || isNameLinked || name === widgetOf(node, "name")?.value || Boolean(queuedNames.get(node)?.has(name));
}

function rememberName(node) {
  if (!queuedNames.has(node)) queuedNames.set(node, new Set());
  queuedNames.get(node).add(widgetOf(node, "name")?.value);
}

/** @param executionId "12", or "5:12" for node 12 in the subgraph of node 5 */
function findNode(executionId) {
  if (executionId === null || executionId === undefined || panels.size === 0) return null;
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

function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
  node.setDirtyCanvas(true, true);
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
