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

/**
 * Makes a grid of groups one stop of the Tab key: arrow keys, Home and End go from one group's button to the other's, Tab
 * from there to what else is in the group.
 * @param container the groups' place, in which they come and go @param group, selector of a group, and of its button
 * @param remove called with a group when Delete or Backspace is pressed on its button
 */
export function walkWithArrows(container, group, selector, remove) {
  const items = () => [...container.querySelectorAll(selector)];
  const itemOf = (control) => control.closest(group)?.querySelector(selector);
  const setStop = (stop) => {
    for (const item of items()) {
      for (const control of item.closest(group).querySelectorAll("button, textarea")) control.tabIndex = item === stop ? 0 : -1;
    }
  };
  const keepStop = () => setStop(itemOf(document.activeElement) ?? items().find(({ tabIndex }) => tabIndex === 0) ?? items()[0]);
  new MutationObserver(keepStop).observe(container, { childList: true });
  container.addEventListener("focusin", ({ target }) => setStop(itemOf(target)));
  container.addEventListener("keydown", (event) => {
    const all = items();
    const index = all.indexOf(event.target);
    if (index < 0 || event.ctrlKey || event.metaKey) return;
    if (["Delete", "Backspace"].includes(event.key)) {
      event.preventDefault();
      return removeAndGoOn(event.target, index);
    }
    const next = all[index + stepOf(event.key, index, all)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });

  /** The one that takes the place gets the focus when the other is gone. */
  function removeAndGoOn(item, index) {
    const goOn = new MutationObserver(() => {
      goOn.disconnect();
      const rest = items();
      rest[Math.min(index, rest.length - 1)]?.focus();
    });
    goOn.observe(container, { childList: true });
    remove(item.closest(group));
  }
}

/** How many buttons a key goes on; NaN for a key that goes nowhere. */
function stepOf(key, index, all) {
  const columns = all.filter(({ offsetTop }) => offsetTop === all[0].offsetTop).length;
  const steps = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -index, End: all.length - 1 - index };
  return Object.hasOwn(steps, key) ? steps[key] : NaN;
}
