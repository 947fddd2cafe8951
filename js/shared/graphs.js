/** Where nodes are: graphs within graphs, and the workflow that is shown. */
import { app } from "../../../scripts/app.js";

export const SUBGRAPH_INPUT = -10; // origin of links that come from a subgraph's inputs

const rootGraph = () => app.rootGraph ?? app.graph;

/** A link by its id, null where there is none. */
export const linkOf = (graph, id) => (id === null || id === undefined ? null : graph?.getLink?.(id) ?? graph?.links?.[id] ?? null);

/**
 * The link that arrives at an input, null where there is none; the input's own `link` is on its way out of the page. As of
 * any node: subgraph nodes have a method of that name for the link within.
 */
export function linkInto(node, slot) {
  const { getInputLink } = globalThis.LiteGraph.LGraphNode.prototype;
  return node.graph && slot >= 0 ? getInputLink.call(node, slot) ?? null : null;
}

/** The links that leave a node's output, whose own `links` are on their way out of the page too. */
export const linksFrom = (node, slot) => [...node.graph?.links.values() ?? []].filter(
  (link) => String(link.origin_id) === String(node.id) && link.origin_slot === slot);

/** Nodes on the way to the one that executes: [5, 12] for "5:12", node 12 in the subgraph of node 5; [] for none. */
export function walk(executionId) {
  const nodes = [];
  let graph = rootGraph();
  for (const id of executionId ? String(executionId).split(":") : []) {
    const node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id));
    if (!node) return [];
    nodes.push(node);
    graph = node.subgraph;
  }
  return nodes;
}

/** @param nodes from one in any graph down to one within it @returns its id with those of the first way to it */
export function executionIdOf(nodes) {
  const { graph } = nodes[0];
  const holder = graph && graph !== rootGraph() && subgraphNodes().find(({ subgraph }) => subgraph === graph);
  if (holder) return executionIdOf([holder, ...nodes]);
  return nodes.map(({ id }) => id).join(":");
}

/** Every subgraph node, also those in subgraphs, each once. */
export function subgraphNodes() {
  const found = new Set();
  const visit = (graph) => {
    for (const node of graph?.nodes ?? []) {
      if (!node.subgraph || found.has(node)) continue;
      found.add(node);
      visit(node.subgraph);
    }
  };
  visit(rootGraph());
  return [...found];
}

/** Makes what was just changed a step of its own for undo; the page notes typing and clicks on the canvas by itself. */
export function noteForUndo() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // the latter in older pages
}

/** What tells the open workflow from others, once it has been loaded. */
export const openWorkflow = () => ({
  id: rootGraph()?.id ?? "", path: app.extensionManager?.workflow?.activeWorkflow?.path ?? "" });

/** Whether a graph is the one that is open, or defined in it. */
export const isOfWorkflow = (graph) => graph === rootGraph() || rootGraph()?.subgraphs?.get(graph?.id) === graph;
