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
 * Makes a row or grid of buttons one stop of the Tab key: arrow keys, Home and End go from one to the other.
 * @param container the buttons' place, in which they come and go
 * @param selector of the buttons
 * @param remove called with a button when Delete or Backspace is pressed on it
 */
export function walkWithArrows(container, selector, remove = null) {
  const items = () => [...container.querySelectorAll(selector)];
  const setStop = (stop) => {
    for (const item of items()) item.tabIndex = item === stop ? 0 : -1;
  };
  const keepStop = () => setStop(items().find((item) => item === document.activeElement || item.tabIndex === 0) ?? items()[0]);
  new MutationObserver(keepStop).observe(container, { childList: true, subtree: true });
  container.addEventListener("focusin", ({ target }) => target.matches(selector) && setStop(target));
  container.addEventListener("keydown", (event) => {
    const all = items();
    const index = all.indexOf(event.target);
    if (index < 0 || event.ctrlKey || event.metaKey) return;
    if (remove && ["Delete", "Backspace"].includes(event.key)) {
      event.preventDefault();
      return removeAndGoOn(event.target, index);
    }
    const next = all[index + stepOf(event.key, index, all)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  keepStop();

  /** The page may draw the others anew: the one that takes the place gets the focus when it is there. */
  function removeAndGoOn(item, index) {
    const goOn = new MutationObserver(() => {
      goOn.disconnect();
      const rest = items();
      (rest[Math.min(index, rest.length - 1)] ?? container).focus();
    });
    goOn.observe(container, { childList: true });
    remove(item);
  }
}

/** How many buttons a key goes on; NaN for a key that goes nowhere. */
function stepOf(key, index, all) {
  const columns = all.filter(({ offsetTop }) => offsetTop === all[0].offsetTop).length;
  const steps = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -index, End: all.length - 1 - index };
  return Object.hasOwn(steps, key) ? steps[key] : NaN;
}
