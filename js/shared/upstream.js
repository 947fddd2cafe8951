/**
 * What an input gets: links followed upstream, through reroutes, subgraphs and bypassed nodes.
 *
 * A place is {node, path: subgraph nodes on the way to it, outermost first}; a source has the output's `slot` too.
 */
import { linkInto, linkOf, linksFrom, SUBGRAPH_INPUT } from "./graphs.js";
import { widgetOf } from "./nodes.js";

const SUBGRAPH_OUTPUT = -20;
const MUTED = 2;
const BYPASSED = 4;
const TYPED = ["PrimitiveNode", "PrimitiveString", "PrimitiveStringMultiline"];
const TEXTS_OF_CONCEPT = { 1: "placeholder", 2: "class_words" }; // output → the widget whose text it gives

/** The source of an input, null where nothing arrives. */
export function sourceOf({ node, path }, name) {
  return into(node, node.inputs?.findIndex((each) => each.name === name), path);
}

const into = (node, slot, path) => arriving(linkInto(node, slot), node.graph, path);

function arriving(link, graph, path) {
  if (!link) return null;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const host = path.at(-1);
    return host ? into(host, link.origin_slot, path.slice(0, -1)) : null;
  }
  const node = graph.getNodeById(link.origin_id);
  return node ? given({ node, path, slot: link.origin_slot }) : null;
}

function given({ node, path, slot }) {
  if (node.mode === MUTED) return null;
  if (node.subgraph && node.mode !== BYPASSED) {
    return arriving(linkOf(node.subgraph, node.subgraph.outputs[slot]?.linkIds?.[0]), node.subgraph, [...path, node]);
  }
  if (node.mode === BYPASSED) return into(node, passedOn(node, slot), path);
  if (node.type === "Reroute") return into(node, 0, path);
  return { node, path, slot };
}

/** Number of the input that a bypassed node gives at an output, as ComfyUI chooses it. */
function passedOn(node, slot) {
  const type = node.outputs[slot]?.type;
  return node.inputs?.[slot]?.type === type ? slot : node.inputs?.findIndex((input) => input.type === type);
}

/** Where a value is typed: {value, widget, node, path}; undefined where another node computes it. */
export function typedValue({ node, path }, name) {
  const link = linkInto(node, node.inputs?.findIndex((input) => input.widget?.name === name));
  if (!link) {
    const widget = widgetOf(node, name);
    return widget && { value: widget.value, widget, node, path };
  }
  if (Number(link.origin_id) === SUBGRAPH_INPUT && path.length) {
    const host = path.at(-1);
    const promoted = host.inputs[link.origin_slot]?.widget?.name;
    return promoted && typedValue({ node: host, path: path.slice(0, -1) }, promoted);
  }
  const source = arriving(link, node.graph, path);
  if (!source) return undefined;
  if (source.node.type === "PersonalizeConcept") return typedValue(source, TEXTS_OF_CONCEPT[source.slot]);
  return TYPED.includes(source.node.type) ? typedValue(source, source.node.widgets?.[0]?.name) : undefined;
}

/** Names of the inputs to which an output's value goes in the end, passing nodes that give the same type on. */
export function destinations(place, type, seen = new Set()) {
  const { node, path } = place;
  if (seen.has(node)) return [];
  seen.add(node);
  const slots = (node.outputs ?? []).flatMap((output, slot) => (output.type === type || node.type === "Reroute" ? [slot] : []));
  return slots.flatMap((slot) => leaving(node, slot, path)).flatMap(({ target, input }) => {
    const isSide = /positive|negative/i.test(input);
    const goesOn = !isSide && target.node.outputs?.some((output) => output.type === type || target.node.type === "Reroute");
    const further = goesOn ? destinations(target, type, seen) : [];
    return further.length ? further : [input];
  });
}

function leaving(node, slot, path) {
  return linksFrom(node, slot).flatMap((link) => ends(link, node.graph, path));
}

function ends(link, graph, path) {
  if (Number(link.target_id) === SUBGRAPH_OUTPUT) {
    const host = path.at(-1);
    return host ? leaving(host, link.target_slot, path.slice(0, -1)) : [];
  }
  const node = graph.getNodeById(link.target_id);
  if (!node || node.mode === MUTED) return [];
  if (node.subgraph) {
    const inner = node.subgraph.inputs[link.target_slot];
    return (inner?.linkIds ?? []).map((id) => linkOf(node.subgraph, id)).filter(Boolean)
      .flatMap((each) => ends(each, node.subgraph, [...path, node]));
  }
  return [{ target: { node, path }, input: node.inputs[link.target_slot]?.name ?? "" }];
}


/** Every node that would run, also within subgraphs. */
export function* placesIn(graph, path = []) {
  for (const node of graph?.nodes ?? []) {
    if (node.mode === MUTED || node.mode === BYPASSED) continue;
    if (!node.subgraph) yield { node, path };
    else if (!path.includes(node)) yield* placesIn(node.subgraph, [...path, node]);
  }
}

/** node → a number of its own, as undo makes other nodes of the same ids */
const numbers = new WeakMap();
let count = 0;

function numberOf(node) {
  if (!numbers.has(node)) numbers.set(node, (count += 1));
  return numbers.get(node);
}

/** What tells a graph from one with another value or link; cheap, as it is asked for whenever the canvas is drawn. */
export function signatureOf(places) {
  const ofNode = (node) => [numberOf(node), (node.widgets ?? []).map(({ value }) => value).join("\u0001"),
    (node.inputs ?? []).map((_, slot) => linkInto(node, slot)?.id ?? "").join()].join("\u0002");
  const nodes = new Set(places.flatMap(({ node, path }) => [...path, node])); // a subgraph node says values, too
  return [...nodes].map(ofNode).join("\u0003");
}
