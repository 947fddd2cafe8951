/** Marks beneath nodes: a sentence and buttons that lie over the canvas, in both renderers, and take no room. */
import { app } from "../../../scripts/app.js";
import { button, element, icon } from "../shared/dom.js";
import { t } from "../shared/texts.js";

const BELOW = 6; // canvas pixels between a node and its mark
const READABLE = 0.35; // of the canvas' scale; below that the mark is a sign alone

/** node → {root, key} */
const shown = new Map();
let layer = null;

/** Shows what is said of each node, and takes away what was said before. @param said node → [{sentence, fixes, apply}] */
export function showMarks(said) {
  for (const [node, { root }] of shown) {
    if (said.has(node)) continue;
    root.remove();
    shown.delete(node);
  }
  for (const [node, problems] of said) {
    const key = JSON.stringify(problems.map(({ sentence, fixes }) => [sentence, fixes]));
    if (shown.get(node)?.key === key) continue;
    shown.get(node)?.root.remove();
    const root = drawn(problems);
    ownLayer().append(root);
    shown.set(node, { root, key });
  }
  placeMarks();
}

/** To be called when the canvas has been drawn: nodes and view may have moved. */
export function placeMarks() {
  if (!shown.size) return;
  const { scale, offset } = app.canvas.ds;
  for (const [node, { root }] of shown) {
    const isVisible = node.graph === app.canvas.graph;
    root.hidden = !isVisible;
    if (!isVisible) continue;
    const [x, y] = node.pos;
    const height = node.flags?.collapsed ? 0 : node.size[1];
    root.style.left = `${(x + offset[0]) * scale}px`;
    root.style.top = `${(y + height + BELOW + offset[1]) * scale}px`;
    root.style.width = `${node.size[0]}px`;
    root.style.transform = `scale(${scale})`;
    root.classList.toggle("pz-mark-small", scale < READABLE);
  }
}

function drawn(problems) {
  const root = element("div", { class: "pz-theme pz-mark", role: "status", "aria-label": t("prompt.label") });
  for (const { sentence, fixes, apply } of problems) {
    root.append(element("div", { class: "pz-mark-problem" }, icon("exclamation-triangle"), element("span", {}, sentence),
      ...fixes.map(({ label, text }) => button({ class: "pz-button", onclick: () => apply(text) }, label))));
  }
  for (const type of ["pointerdown", "pointermove", "pointerup", "keydown"]) {
    root.addEventListener(type, (event) => event.stopPropagation()); // else the canvas takes it
  }
  root.addEventListener("wheel", (event) => app.canvas.processMouseWheel(event));
  return root;
}

function ownLayer() {
  if (!layer?.isConnected) {
    layer = element("div", { class: "pz-marks" });
    app.canvas.canvas.parentElement.append(layer);
  }
  return layer;
}
