/**
 * Page parts: what the pack draws on nodes, kept alive through every life of its node: load, paste, undo, a subgraph,
 * another workflow, the other renderer, a server that comes back. All are attached here, by `addPart`.
 */
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { element } from "./dom.js";
import { keepKeys } from "./keys.js";
import { chain, loadStyle, putFirst } from "./nodes.js";
import { listed } from "./texts.js";
import { adoptWidget, dropWidget, promotedWidget } from "./promoted.js";
import { executionIdOf, isOfWorkflow, openWorkflow, subgraphNodes, walk } from "./graphs.js";

const kinds = [];
/** All that are in a graph. */
const places = new Set();
/** What parts showed last while this page is open, by workflow and node: undo makes nodes anew. */
const memory = new Map();
/** prompt's id → the workflow that it was queued from, as another may be shown when it runs */
const origins = new Map();
const restoring = new Set();
let isSyncing = false;

/**
 * Draws a part on nodes. A part is {root, moreHeight?(), restore?(), executed?(output), remember?(), recall?(remembered)}:
 * - root: the element
 * - moreHeight: pixels that it needs now beside the kind's minHeight; `place.grow()` after it has become more
 * - restore: a life of the node begins, or the server came back: show what is true now
 * - executed: the node ran, its output for the page
 * - remember, recall: what the next node in its place can show at once, as after undo; null for nothing
 *
 * @param kind {name, nodeTypes, minHeight, minWidth?, first?: above the node's widgets, outside?: also on subgraph nodes
 *   that hold the node, order?: of parts on a subgraph node, create(place): part, rememberedOf?(output): what to recall of a
 *   run that ended while another workflow was shown}
 */
export function addPart(kind) {
  kinds.push(kind);
}

/** Places of the parts of one name, in a graph. */
export const placesOf = (name) => [...places].filter(({ kind }) => kind.name === name);

/** Where a part is drawn: on its own node, or on a subgraph node that holds it. */
class Place {
  /** @param path the nodes from `host` down to `node`, without `host`; [] on the node itself */
  constructor(kind, node, host = node, path = []) {
    Object.assign(this, { kind, node, host, path });
    this.isOfFormer = this.isOutside; // whether it may be made anew of a saved node, and not new on the graph
    this.name = [kind.name, ...path.map(({ id }) => id)].join(" ");
    this.part = kind.create(this);
    const { root } = this.part;
    root.classList.add("pz-part");
    root.dataset.part = this.name;
    this.drawn = host.addDOMWidget(this.name, `PERSONALIZE_${kind.name.toUpperCase()}`, root, {
      serialize: false, // not into the prompt
      hideOnZoom: false,
      hideInPanel: true, // the side panel would draw it a second time and change its width
      getMinHeight: () => kind.minHeight + (this.part.moreHeight?.() ?? 0),
    });
    this.drawn.serialize = false; // not into the saved workflow
    letCanvasHaveWheelAndMiddleButton(root);
    keepKeys(root);
  }

  get isOutside() {
    return this.host !== this.node;
  }

  /** The widget that says a value: the node's own, or that of the subgraph node where it is promoted to it. */
  widget(name) {
    return promotedWidget([this.host, ...this.path], name);
  }

  /** A widget's value as typing into it sets it. */
  setWidget(name, value) {
    const widget = this.widget(name);
    if (!widget) return;
    widget.value = value;
    widget.callback?.(value);
    this.host.setDirtyCanvas(true, true);
  }

  /** Makes the node as high as its parts need. */
  grow() {
    growToFit(this.host, this.kind);
    this.host.setDirtyCanvas(true, true);
  }

  /** Calls `react` whenever one of these widgets is changed. */
  onChange(names, react) {
    this.watched = { names, react, known: new WeakSet() };
    this.watchWidgets();
  }

  /** Widgets of a subgraph node come and go. */
  watchWidgets() {
    for (const name of this.watched?.names ?? []) {
      const widget = this.widget(name);
      if (!widget || this.watched.known.has(widget)) continue;
      this.watched.known.add(widget);
      chain(widget, "callback", () => this.watched.react(name));
    }
  }

  /** Keeps a value in the workflow, with the node. */
  keep(key, value) {
    const property = `personalize_${key}`;
    const { properties } = this.host;
    if (!this.isOutside) properties[property] = value;
    else properties[property] = { ...properties[property], [this.#address()]: value };
  }

  /** What was kept, else undefined. */
  kept(key) {
    const property = `personalize_${key}`;
    if (!this.isOutside) return this.host.properties[property];
    const own = this.host.properties[property]?.[this.#address()];
    return own === undefined && this.#isOnlyInstance() ? this.node.properties[property] : own;
  }

  /** What the node is called in a prompt: "12", or "5:12" for node 12 in the subgraph of node 5. */
  get executionId() {
    return executionIdOf([this.host, ...this.path]);
  }

  /** @param executionId "12", or "5:12" for node 12 in the subgraph of node 5 */
  isExecution(executionId) {
    const nodes = walk(executionId);
    return nodes.at(-1) === this.node && (!this.isOutside || nodes.includes(this.host));
  }

  /** Begin a life: now and whenever the node is configured, added, or its server is back. */
  restore() {
    if (!places.has(this)) return;
    this.watchWidgets();
    this.#nameForScreenReaders();
    const key = memoryKey(openWorkflow(), this.kind, this.isOutside, this.executionId);
    if (key !== this.key) {
      this.key = key;
      if (this.isOfFormer && memory.has(key)) this.part.recall?.(memory.get(key));
    }
    this.part.restore?.();
  }

  remember() {
    const remembered = this.part.remember?.();
    if (this.key && remembered) memory.set(this.key, remembered);
  }

  #address() {
    return this.path.map(({ id }) => id).join(":");
  }

  /** Of several trays or panels each has the name of its node. */
  #nameForScreenReaders() {
    const { root } = this.part;
    this.label ??= root.getAttribute("aria-label");
    if (this.label) root.setAttribute("aria-label", listed([this.label, this.node.title]));
  }

  /** Whether what is kept with the node can only be meant for this subgraph node. */
  #isOnlyInstance() {
    return subgraphNodes().filter(({ type }) => type === this.host.type).length < 2;
  }
}

app.registerExtension({
  name: "personalize.parts",

  setup() {
    loadStyle("./parts.css", import.meta.url);
    chain(app.canvas, "onDrawForeground", () => places.forEach(mountWhereMissing));
    app.canvas.canvas.addEventListener("litegraph:set-graph", onGraphOpened);
    noteOrigins();
    api.addEventListener("executed", ({ detail }) => onExecuted(detail));
    api.addEventListener("reconnected", () => places.forEach(restoreSoon));
  },

  nodeCreated(node) {
    if (node.subgraph) return onSubgraphNode(node);
    for (const kind of kinds) {
      if (kind.nodeTypes.includes(node.comfyClass)) attach(kind, node);
    }
  },
});

/** Within a subgraph, or outside it again: what was changed there is shown here. */
function onGraphOpened() {
  for (const place of places) if (place.host.graph === app.canvas.graph) restoreSoon(place);
  syncSoon();
}

function attach(kind, node) {
  const place = new Place(kind, node);
  if (kind.first) putFirst(node, place.drawn);
  growToFit(node, kind);
  chain(node, "onConfigure", () => {
    place.isOfFormer = true;
    restoreSoon(place);
  });
  chain(node, "onAdded", () => {
    enter(place);
    syncSoon();
  });
  chain(node, "onRemoved", () => {
    leave(place);
    syncSoon();
  });
}

function onSubgraphNode(node) {
  syncSoon();
  chain(node, "onAdded", syncSoon);
  chain(node, "onConfigure", syncSoon);
  chain(node, "onRemoved", () => {
    for (const place of [...places]) if (place.host === node) leave(place);
  });
}

const memoryKey = ({ id, path }, kind, isOutside, executionId) => (
  [id, path, kind.name, isOutside ? "outer" : "own", executionId].join(" "));

function enter(place) {
  places.add(place);
  restoreSoon(place);
}

function leave(place) {
  place.remember();
  places.delete(place);
}

/** After what happens now has ended: a node is configured, then added, then the workflow gets its name. */
function restoreSoon(place) {
  if (!restoring.size) {
    setTimeout(() => {
      const due = [...restoring];
      restoring.clear();
      for (const one of due) one.restore();
    });
  }
  restoring.add(place);
}

/** Graphs have changed: subgraph nodes get the parts of the nodes that they hold now, and lose others. */
function syncSoon() {
  if (isSyncing) return;
  isSyncing = true;
  setTimeout(() => {
    isSyncing = false;
    for (const place of [...places]) if (!isOfWorkflow(place.host.graph)) leave(place);
    for (const host of subgraphNodes()) syncSubgraphNode(host);
    app.canvas?.setDirty(true, true);
  });
}

function syncSubgraphNode(host) {
  const wanted = partsWithin(host);
  const present = [...places].filter((place) => place.isOutside && place.host === host);
  const isSame = (place, { kind, path }) => place.kind === kind && place.path.every((node, i) => node === path[i]);
  for (const place of present) {
    if (wanted.some((part) => isSame(place, part))) restoreSoon(place);
    else removeFromSubgraphNode(place);
  }
  for (const { kind, path } of wanted) {
    if (present.some((place) => isSame(place, { kind, path }))) continue;
    const place = new Place(kind, path.at(-1), host, path);
    adoptWidget(host, place.drawn);
    growToFit(host, kind);
    enter(place);
  }
}

function removeFromSubgraphNode(place) {
  leave(place);
  dropWidget(place.host, place.drawn);
  place.part.root.remove();
}

/** [{kind, path: nodes from within `host` to the one with the part}], in the order of the kinds. */
function partsWithin(host) {
  const found = [];
  const visit = (graph, path) => {
    for (const node of graph.nodes) {
      if (node.subgraph && !path.includes(node)) visit(node.subgraph, [...path, node]);
      for (const kind of kinds) {
        if (kind.outside && kind.nodeTypes.includes(node.comfyClass)) found.push({ kind, path: [...path, node] });
      }
    }
  };
  visit(host.subgraph, []);
  return found.sort((left, right) => (left.kind.order ?? 0) - (right.kind.order ?? 0));
}

function growToFit(node, { minWidth = 0 }) {
  const [width, height] = node.computeSize();
  const size = [Math.max(node.size[0], minWidth, width), Math.max(node.size[1], height)];
  if (size.some((value, i) => value > node.size[i])) node.setSize(size);
}

/** ComfyUI gives a result to the node of that id in the workflow that is shown, be it the one that ran or not. */
function onExecuted({ node, display_node, output, prompt_id }) {
  const executionId = display_node ?? node;
  const origin = origins.get(prompt_id);
  const { id, path } = openWorkflow();
  if (origin && origin.id !== id && origin.path !== path) return keepForOther(origin, executionId, output);
  for (const place of places) if (place.isExecution(executionId)) place.part.executed?.(output);
}

function keepForOther(origin, executionId, output) {
  for (const kind of kinds) {
    const remembered = kind.rememberedOf?.(output);
    if (!remembered) continue;
    for (const isOutside of [false, true]) memory.set(memoryKey(origin, kind, isOutside, executionId), remembered);
  }
}

function noteOrigins() {
  const queue = api.queuePrompt;
  api.queuePrompt = async function (...values) {
    const workflow = openWorkflow();
    const answer = await queue.apply(this, values);
    if (answer?.prompt_id) origins.set(answer.prompt_id, workflow);
    return answer;
  };
}

/**
 * Draws an element that is on no page although its node is shown. Nodes 2.0 goes on showing the element of a former
 * node of the same id, as after undo, and has no room for widgets that subgraph nodes get from extensions.
 */
function mountWhereMissing({ kind, host, drawn, part: { root }, name }) {
  if (root.isConnected || host.graph !== app.canvas.graph || host.flags?.collapsed) return;
  if (!globalThis.LiteGraph?.vueNodesMode) return mountInClassicNode(host, drawn);
  const box = document.querySelector(`[data-node-id="${host.id}"]`);
  const former = [...(box?.querySelectorAll(".pz-part") ?? [])].find((other) => other.dataset.part === name);
  if (former) former.replaceWith(root);
  else box?.querySelector("[data-testid^='node-body-']")?.append(ownRoom(root, kind));
}

/** The page mounts a widget's element when it becomes visible, and only then. */
function mountInClassicNode(host, drawn) {
  if (!app.canvas.visible_nodes?.includes(host) || drawn.isMounting) return;
  drawn.isMounting = true;
  drawn.hidden = true;
  setTimeout(() => {
    drawn.hidden = false;
    app.canvas.setDirty(true, true);
    setTimeout(() => { drawn.isMounting = false; }, 500);
  }, 50);
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

function ownRoom(root, { minHeight }) {
  const room = element("div", { class: "pz-room", style: `min-height: ${minHeight}px` });
  for (const type of ["pointerdown", "pointermove", "pointerup"]) {
    room.addEventListener(type, (event) => event.stopPropagation()); // else the node is dragged
  }
  room.append(root);
  return room;
}
