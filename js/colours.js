/** Colours of the wires and sockets that the pack adds, one for each kind, apart from each other and from ComfyUI's own. */
import { app } from "../../scripts/app.js";

const COLOURS = {
  PERSONALIZE_CONCEPT: "#e69f00",
};
app;
