/** Builds an element: `element("div", { class: "…", "aria-label": "…", onclick }, "text", child)`. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function" || name === "hidden" || name === "disabled") node[name] = value;
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const button = (attributes, ...children) => element("button", { type: "button", ...attributes }, ...children);

/** Whether a button that stays down is down. */
export const setPressed = (pressed, isDown) => pressed.setAttribute("aria-pressed", String(isDown));

/** One of the icons that ComfyUI's page brings (PrimeIcons); for the eye only. */
export const icon = (name) => element("i", { class: `pi pi-${name}`, "aria-hidden": "true" });

/** Changes a text only when it is another one, so that a screen reader does not repeat it. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
