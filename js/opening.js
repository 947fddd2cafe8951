/** Opens the pack's templates at their note, at a readable size: the page shows a template as a whole, however small. */
import { app } from "../../scripts/app.js";

const MARK = "opens_at"; // in a template's extra: x, y, width, height of what is to be read first
const LEAST = 0.8; // of the full size; below 0.6 classic nodes leave out all text
const BARS = { left: 84, top: 104, right: 24, bottom: 24 }; // pixels beneath the page's own bars
const FRAMES = 6; // in which newer pages set the view themselves

app.registerExtension({
  name: "personalize.opening",

  afterConfigureGraph() {
    const box = app.rootGraph?.extra?.[MARK];
    if (!box) return;
    delete app.rootGraph.extra[MARK]; // what is saved opens where it was left
    show(box, FRAMES);
  },
});

function show(box, frames) {
  const { ds, canvas } = app.canvas;
  const { width, height } = canvas.getBoundingClientRect();
  const fitting = Math.min((width - BARS.left - BARS.right) / box[2], (height - BARS.top - BARS.bottom) / box[3]);
  ds.scale = Math.min(1, Math.max(LEAST, fitting));
  ds.offset[0] = BARS.left / ds.scale - box[0];
  ds.offset[1] = BARS.top / ds.scale - box[1];
  app.canvas.setDirty(true, true);
  if (frames > 1) requestAnimationFrame(() => show(box, frames - 1));
}
