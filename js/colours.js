/**
 * Colours of the slots and wires that the pack adds: one for each kind, apart from each other for every kind of sight
 * and from ComfyUI's own, and with three times the contrast of what lies behind them.
 */
import { app } from "../../scripts/app.js";

const COLOURS = { // on dark themes, on light ones
  PERSONALIZE_CONCEPT: ["#e8880a", "#a0690c"],
  PERSONALIZE_SUBJECT: ["#1fe2fc", "#297aad"],
  PERSONALIZE_TRAINABLE: ["#add83f", "#6e5205"],
  PERSONALIZE_LOSS: ["#df4f22", "#74000b"],
  PERSONALIZE_RECIPE: ["#f5ef96", "#942c60"],
  PERSONALIZE_PROMPT_SET: ["#f3c0ac", "#c93f7b"],
  PERSONALIZE_VISUAL_TOKENS: ["#d582f8", "#884df5"],
  PERSONALIZE_RECORD: ["#b0fdec", "#2f41c9"],
  PERSONALIZE_VICO: ["#926beb", "#601d75"],
  PERSONALIZE_IP_ADAPTER: ["#7cadb0", "#0903ab"],
  PERSONALIZE_BLIP_DIFFUSION: ["#3d8eb0", "#2e0056"],
  PERSONALIZE_ELITE: ["#ab716e", "#440021"],
  PERSONALIZE_VALIDATION: ["#a3a273", "#020006"],
};
const DARK = "dark-theme"; // class of the page

app.registerExtension({
  name: "personalize.colours",

  setup() {
    const { canvas } = app;
    for (const table of [canvas.default_connection_color_byType, canvas.constructor.link_type_colors]) {
      for (const [type, colours] of Object.entries(COLOURS)) provide(table, type, colours);
    }
    document.head.append(styleSheet());
    const repaint = () => canvas.setDirty(true, true);
    new MutationObserver(repaint).observe(document.documentElement, { attributeFilter: ["class"] });
  },
});

/** Each theme writes its colours into this table, none for kinds that it does not know; one that does wins. */
function provide(table, type, [onDark, onLight]) {
  let ofPalette = "";
  Object.defineProperty(table, type, {
    get: () => ofPalette || (document.documentElement.classList.contains(DARK) ? onDark : onLight),
    set: (colour) => (ofPalette = colour),
    enumerable: true,
    configurable: true,
  });
}

/** For Nodes 2.0, whose palettes set the same variables on the page's element. */
function styleSheet() {
  const variable = (index) => ([type, colours]) => `--color-datatype-${type}: ${colours[index]};`;
  const rule = (where, index) => [where, "{", ...Object.entries(COLOURS).map(variable(index)), "}"].join(" ");
  const sheet = document.createElement("style");
  sheet.append(rule(":root", 1), rule(`:root.${DARK}`, 0));
  return sheet;
}
