/** ComfyUI's own mask editor for a picture that no node shows. */
import { app, ComfyApp } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { t } from "../shared/texts.js";

const STAND_IN = "personalize-mask";

/**
 * Opens the editor. It works on a node's pictures, so it gets a stand-in, which no graph has.
 * @param picture {filename, subfolder, type} @param onSaved called with the same of what was painted
 */
export function openMaskEditor(picture, onSaved) {
  if (typeof ComfyApp?.open_maskeditor !== "function") throw new Error(t("mask.no_editor"));
  const image = new Image();
  image.src = api.apiURL(`/view?${new URLSearchParams(picture)}`);
  let images = [picture];
  const node = {
    id: STAND_IN, imgs: [image], imageIndex: 0, widgets: [], properties: {}, previewMediaType: "image",
    graph: app.rootGraph ?? app.graph, // whose widgets newer editors ask for
    get images() { return images; },
    set images(saved) {
      images = saved;
      if (saved?.[0]) onSaved(saved[0]);
    },
  };
  const former = ComfyApp.clipspace_return_node;
  ComfyApp.clipspace_return_node = node;
  ComfyApp.open_maskeditor();
  ComfyApp.clipspace_return_node = former;
}
