/** Keys within what the pack draws on nodes. ComfyUI's page has keys of its own: Delete there deletes the node. */

/** Keeps keys in a part, but for those with Ctrl or Cmd, as to run or to save; Escape leaves the part for the graph. */
export function keepKeys(root) {
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey) return;
    event.stopPropagation();
    if (event.key !== "Escape" || event.defaultPrevented) return;
    document.getElementById("graph-canvas")?.focus({ preventScroll: true });
  });
}
