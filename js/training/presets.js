/**
 * A preset is a paper's whole set of numbers, and the server uses it in place of the widgets it names.
 *
 * So that the node never shows other numbers than it uses: choosing a preset writes its numbers into the widgets, and
 * changing one of them afterwards turns the choice into the first one, "custom".
 */
import { fetchPresets } from "./server.js";

/** {preset: {widget: value}}, asked for once. */
let table = null;

/** @param write called with a widget and its new value */
export function keepPresetTrue(widgets, write) {
  const named = new Map((widgets ?? []).map((widget) => [widget.name, widget]));
  const choice = named.get("preset");
  if (!choice) return;
  const custom = choice.options.values[0];
  table ??= fetchPresets();
  table.then((presets) => {
    afterChange(choice, () => {
      for (const [name, value] of Object.entries(presets[choice.value] ?? {})) {
        if (named.has(name)) write(named.get(name), value);
      }
    });
    for (const name of new Set(Object.values(presets).flatMap(Object.keys))) {
      const widget = named.get(name);
      const isAsPreset = () => [undefined, widget.value].includes(presets[choice.value]?.[name]);
      if (widget) afterChange(widget, () => isAsPreset() || write(choice, custom));
    }
  });
}

/** Calls `react` after the widget's own callback. */
function afterChange(widget, react) {
  const previous = widget.callback;
  widget.callback = function (...values) {
    const answer = previous?.apply(this, values);
    react();
    return answer;
  };
}
