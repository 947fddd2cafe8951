/**
 * Colours of the slots and wires that the pack adds: one for each kind, apart from each other for every kind of sight
 * and from ComfyUI's own, and with three times the contrast of what lies behind them.
 */
import { app } from "../../scripts/app.js";

const COLOURS = { // on dark themes, on light ones
  PERSONALIZE_CONCEPT: ["#e8880a", "#a0690c"],
  PERSONALIZE_SUBJECT: ["#1fe2fc", "#297aad"],
  PERSONALIZE_TRAINABLE: ["#a1d846", "#6e5205"],
  PERSONALIZE_LOSS: ["#df4f22", "#74000b"],
  PERSONALIZE_RECIPE: ["#f7fb9d", "#95325e"],
  PERSONALIZE_PROMPT_SET: ["#f3c0ac", "#c93f7b"],
  PERSONALIZE_VISUAL_TOKENS: ["#d582f8", "#884df5"],
  PERSONALIZE_RECORD: ["#acffff", "#2f41c9"],
  PERSONALIZE_VICO: ["#926beb", "#64206d"],
  PERSONALIZE_IP_ADAPTER: ["#7cadb0", "#0903ab"],
  PERSONALIZE_BLIP_DIFFUSION: ["#3d8eb0", "#2e0056"],
  PERSONALIZE_ELITE: ["#ab716e", "#410024"],
  PERSONALIZE_CONTEXTUALIZER: ["#bff426", "#3a353a"],
  PERSONALIZE_VALIDATION: ["#a3a273", "#020006"],
};

let isDark = true;

app.registerExtension({
  name: "personalize.colours",

  setup() {
    const { canvas } = app;
    for (const table of [canvas.default_connection_color_byType, canvas.constructor.link_type_colors]) {
      for (const [type, colours] of Object.entries(COLOURS)) provide(table, type, colours);
    }
    const sheet = document.createElement("style");
    document.head.append(sheet);
    const paint = () => {
      isDark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
      sheet.textContent = rules();
      canvas.setDirty(true, true);
    };
    paint();
    new MutationObserver(paint).observe(document.documentElement, { attributeFilter: ["class", "style"] });
  },
});

/** Each theme writes its colours into this table: of kinds that it does not know none, or what it has read there. */
function provide(table, type, [onDark, onLight]) {
  let ofPalette = "";
  Object.defineProperty(table, type, {
    get: () => ofPalette || (isDark ? onDark : onLight),
    set: (colour) => (ofPalette = [onDark, onLight].includes(colour) ? "" : colour),
    enumerable: true,
    configurable: true,
  });
}

/** For Nodes 2.0, whose palettes set the same variables on the page's element. */
function rules() {
  const variable = ([type, [onDark, onLight]]) => `--color-datatype-${type}: ${isDark ? onDark : onLight};`;
  return [":root {", ...Object.entries(COLOURS).map(variable), "}"].join(" ");
}
