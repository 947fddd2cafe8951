/** Tells when the graph has another node, link or value: a moment after the canvas was drawn or something was typed. */
import { app } from "../../../scripts/app.js";
import { chain } from "./nodes.js";
import { placesIn, signatureOf } from "./upstream.js";

const WAIT_MS = 300;
const listeners = [];
let timer = 0;
let seen = "";

/** Calls `react` with every node that would run, as `placesIn` gives them, whenever one of them has changed. */
export function onGraphChange(react) {
  listeners.push(react);
}

/** Calls all again although nothing has changed in the graph, as when the server has told something. */
export function lookAgain() {
  seen = "";
  lookSoon();
}

app.registerExtension({
  name: "personalize.changes",

  setup() {
    chain(app.canvas, "onDrawForeground", lookSoon); // it is drawn whenever something changes, and else not
    document.addEventListener("input", lookSoon, true); // typing in a text box draws no canvas
  },
});

function lookSoon() {
  timer ||= setTimeout(() => {
    timer = 0;
    const places = [...placesIn(app.rootGraph ?? app.graph)];
    const state = `${app.canvas.graph?.id} ${signatureOf(places)}`;
    if (state === seen) return;
    seen = state;
    for (const react of listeners) react(places);
  }, WAIT_MS);
}
