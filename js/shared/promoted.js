/** Widgets of subgraph nodes: those that stand for a widget of a node within, and parts that the pack adds. */
import { linkInto, SUBGRAPH_INPUT } from "./graphs.js";
import { widgetOf } from "./nodes.js";

/** subgraph node → widgets that its own list leaves out */
const adopted = new WeakMap();

/**
 * The widget that says a value of a node: its own, or the one it is promoted to.
 * @param nodes from a subgraph node down to the node whose widget it is
 */
export function promotedWidget(nodes, name) {
  const node = nodes.at(-1);
  const own = widgetOf(node, name);
  if (nodes.length < 2) return own;
  const slot = slotOfSubgraph(node, name);
  const host = nodes.at(-2);
  const input = host.inputs?.[slot];
  if (!input?.widget) return own;
  return promotedWidget(nodes.slice(0, -1), input.widget.name) ?? own;
}

/** Number of the subgraph's input that a widget is linked to, else undefined. */
function slotOfSubgraph(node, name) {
  const link = linkInto(node, node.inputs?.findIndex((input) => input.widget?.name === name));
  return Number(link?.origin_id) === SUBGRAPH_INPUT ? link.origin_slot : undefined;
}

/** Keeps a widget on a subgraph node, whose list of widgets may be made of its inputs alone. */
export function adoptWidget(host, widget) {
  if (host.widgets?.includes(widget)) return;
  if (!adopted.has(host)) listAdopted(host);
  adopted.get(host).push(widget);
}

export function dropWidget(host, widget) {
  const extra = adopted.get(host);
  if (extra?.includes(widget)) {
    extra.splice(extra.indexOf(widget), 1);
    widget.onRemove?.();
  } else {
    host.removeWidget(widget);
  }
}

function listAdopted(host) {
  const extra = [];
  adopted.set(host, extra);
  const descriptor = Object.getOwnPropertyDescriptor(host, "widgets");
  const own = descriptor?.get ?? (() => descriptor?.value);
  Object.defineProperty(host, "widgets", {
    configurable: true,
    enumerable: true,
    get: () => [...(own.call(host) ?? []), ...extra],
    set: () => {}, // ComfyUI makes the list of the inputs
  });
}
