/** What every extension of the pack does to nodes of the page. */

export const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);

/** Keeps a widget with its value off the node, in both renderers. */
export function hideWidget(widget) {
  if (!widget) return;
  widget.hidden = true;
  widget.options.hidden = true; // for Nodes 2.0
}

/** Calls `after` after the function `name` of `owner`, with the same arguments. */
export function chain(owner, name, after) {
  const before = owner?.[name];
  if (!owner) return;
  owner[name] = function (...values) {
    const answer = before?.apply(this, values);
    after(...values);
    return answer;
  };
}

/**
 * Puts a widget that is not saved above the node's others. The page saves values by the widget's place, also that of one
 * without a value: a workflow is to be read as before, so that no place is left for it.
 */
export function putFirst(node, widget) {
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.widgets.unshift(widget);
  chain(node, "onSerialize", (saved) => {
    saved.widgets_values = node.widgets.filter(({ serialize }) => serialize !== false).map(({ value }) => value ?? null);
  });
}

/** Adds a style sheet, once, that lies beside the module `base` (its import.meta.url). */
export function loadStyle(path, base) {
  const address = new URL(path, base).href;
  if ([...document.styleSheets].some((sheet) => sheet.href === address)) return;
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = address;
  document.head.append(link);
}
