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

/** Adds a style sheet, once, that lies beside the module `base` (its import.meta.url). */
export function loadStyle(path, base) {
  const address = new URL(path, base).href;
  if ([...document.styleSheets].some((sheet) => sheet.href === address)) return;
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = address;
  document.head.append(link);
}
