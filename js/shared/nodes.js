/** What every extension of the pack does to nodes of the page. */

export const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);

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
 * Nodes 2.0 goes on showing the element of a former node of the same id when a graph replaces another, as undo does.
 * Call it when a node was added to a graph: its own element takes that place.
 * @param selector what both elements match
 */
export function takePlaceOfFormer(node, root, selector) {
  const replace = () => {
    const shown = document.querySelector(`[data-node-id="${node.id}"] ${selector}`);
    if (shown && shown !== root) shown.replaceWith(root);
  };
  requestAnimationFrame(() => requestAnimationFrame(replace)); // when the page has drawn the new graph
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
