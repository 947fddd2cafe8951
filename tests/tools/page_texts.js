/** A rule for deno lint: what the page shows goes through t() of js/shared/texts.js, so that it can be translated. */
const SHOWN = new Set([
  "title", "alt", "placeholder", "label", "textContent", "innerText", "innerHTML", "aria-label", "aria-description",
  "aria-valuetext", "aria-roledescription"]);
const NOT_SHOWN = new Set(["class", "className", "style", "id", "role"]);
/** function → the first of its arguments that is shown */
const SHOWING = { element: 2, button: 1, setText: 1, append: 0, prepend: 0, replaceChildren: 0, replaceWith: 0, alert: 0 };
const LETTERS = /\p{L}/u;
const WORDS = /(?<![\p{L}\p{N}])\p{L}{2,} \p{L}{2,}/u;
const MESSAGE = "The page's texts are in locales/en/main.json: write t(\"section.key\") of js/shared/texts.js.";

const nameOf = (node) => node?.name ?? node?.value ?? node?.property?.name ?? "";

/** What becomes of a literal: "shown", "not shown" or "" when it cannot be told. */
function use(node) {
  let child = node;
  for (let parent = node.parent; parent; child = parent, parent = parent.parent) {
    if (parent.type.startsWith("Import") || parent.type.startsWith("Export")) return "not shown";
    if (parent.type === "ConditionalExpression" && parent.test === child) return "not shown";
    if (parent.type === "BinaryExpression" && parent.operator !== "+") return "not shown";
    if (parent.type === "MemberExpression" && parent.property === child) return "not shown";
    if (["ConditionalExpression", "BinaryExpression", "LogicalExpression", "TemplateLiteral"].includes(parent.type)) continue;
    if (parent.type === "Property") return parent.key === child ? "not shown" : ofName(nameOf(parent.key));
    if (parent.type === "AssignmentExpression") return ofName(nameOf(parent.left));
    return parent.type === "CallExpression" ? ofCall(parent, child) : "";
  }
  return "";
}

const ofName = (name) => (SHOWN.has(name) ? "shown" : NOT_SHOWN.has(name) ? "not shown" : "");

function ofCall(call, argument) {
  const name = nameOf(call.callee);
  const place = call.arguments.indexOf(argument);
  if (name === "setAttribute") return place === 0 ? "not shown" : ofName(nameOf(call.arguments[0]));
  if (name === "t" || ["body", "console"].includes(nameOf(call.callee.object))) return "not shown";
  return Object.hasOwn(SHOWING, name) && place >= SHOWING[name] ? "shown" : "";
}

export default {
  name: "personalize",
  rules: {
    "page-texts": {
      create(context) {
        const check = (node, text) => {
          const used = LETTERS.test(text) ? use(node) : "not shown";
          if (used === "shown" || (used === "" && WORDS.test(text))) context.report({ node, message: MESSAGE });
        };
        return {
          Literal: (node) => typeof node.value === "string" && check(node, node.value),
          TemplateElement: (node) => check(node, node.cooked ?? node.raw),
        };
      },
    },
  },
};
