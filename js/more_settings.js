/**
 * Folds what ComfyUI's schema calls advanced, in classic nodes, which show every input else. Nodes 2.0 does so by
 * itself; both keep in `showAdvanced` of a node, which is saved with the workflow, whether it is open.
 */
import { app } from "../../scripts/app.js";
import { linkInto } from "./shared/graphs.js";
import { t } from "./shared/texts.js";

const SHOW_ALL = "Comfy.Node.AlwaysShowAdvancedWidgets"; // a setting of ComfyUI's
const OURS = /^Personalize/;

let isAllShown = false;

app.registerExtension({
  name: "personalize.more_settings",

  setup() {
    const { settings } = app.ui;
    isAllShown = Boolean(settings.getSettingValue(SHOW_ALL));
    settings.addEventListener(`${SHOW_ALL}.change`, ({ detail }) => {
      isAllShown = Boolean(detail.value);
      app.canvas?.setDirty(true, true);
    });
  },

  nodeCreated(node) {
    if (OURS.test(node.comfyClass) && node.widgets?.some(isAdvanced)) fold(node);
  },
});

const isAdvanced = (widget) => Boolean(widget.options?.advanced);

function fold(node) {
  const isFolded = (widget) => !node.showAdvanced && !isAllShown && isAway(node, widget);
  only(node, "isWidgetVisible", isFolded);
  only(node, "isWidgetRowVisible", isFolded); // of newer pages: what takes up a row
  const layout = node.getLayoutWidgets;
  node.getLayoutWidgets = function () {
    return layout.call(this).filter((widget) => !isFolded(widget));
  };
  addSwitch(node);
  node.setSize([node.size[0], node.computeSize()[1]]);
}

/** Narrows a node's method that says whether a widget is to be seen. */
function only(node, method, isFolded) {
  const before = node[method];
  if (!before) return;
  node[method] = function (widget) {
    return before.call(this, widget) && !isFolded(widget);
  };
}

/** Advanced, or the second widget of such a one; what a wire leads to stays in sight. */
function isAway(node, widget) {
  const owner = node.widgets.find((other) => other.linkedWidgets?.includes(widget)) ?? widget;
  const isLinked = () => linkInto(node, node.inputs?.findIndex((input) => input.widget?.name === owner.name));
  return isAdvanced(owner) && !isLinked();
}

/** A row at the node's end that opens and closes it. */
function addSwitch(node) {
  const { length } = node.widgets.filter(isAdvanced);
  const toggle = () => {
    const { size: [width, height] } = node;
    const room = height - node.computeSize()[1];
    node.showAdvanced = !node.showAdvanced;
    node.setSize([width, node.computeSize()[1] + Math.max(room, 0)]);
    node.setDirtyCanvas(true, true);
  };
  const widget = node.addWidget("button", "more_settings", null, toggle, { serialize: false, canvasOnly: true });
  widget.serialize = false;
  Object.defineProperty(widget, "label", {
    get: () => t(node.showAdvanced ? "settings.fewer" : "settings.more", { count: length }),
    set() {},
    configurable: true,
  });
}
