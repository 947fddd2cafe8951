/** What the check of the pictures found: one line for the set, the sentences on request. */
import { element, icon, setText } from "../shared/dom.js";
import { listed, t } from "../shared/texts.js";

export class Findings {
  #line = element("span", { role: "status" });
  #icon = element("span", { class: "pz-tray-sign" });
  #list = element("ul");
  root = element("details", { class: "pz-message pz-tray-findings", hidden: true },
    element("summary", {}, this.#icon, this.#line), this.#list);

  /** @param findings of the server's check, or null while there are none @param selected name of a picture, or "" */
  show(findings, selected) {
    this.root.hidden = !findings;
    if (!findings) return;
    const grave = findings.filter(({ is_note }) => !is_note);
    this.root.classList.toggle("pz-found", grave.length > 0);
    this.#icon.replaceChildren(icon(grave.length ? "exclamation-triangle" : "check"));
    setText(this.#line, grave.length ? listed(shortTexts(grave)) : t("check.nothing"));
    const ordered = [...findings].sort((a, b) => Number(isAbout(b, selected)) - Number(isAbout(a, selected)));
    this.#list.replaceChildren(...ordered.map((finding) => element("li",
      { "data-code": finding.code, class: isAbout(finding, selected) ? "pz-selected" : "" }, sentence(finding))));
  }

  open() {
    this.root.open = true;
  }
}

/** Short texts of what was found about one picture. */
export const remarksAbout = (findings, name) => shortTexts(
  (findings ?? []).filter((one) => one.code !== "background" && isAbout(one, name)), 1);

const isAbout = ({ pictures }, name) => pictures.includes(name);

function sentence({ code, values, sentence: english }) {
  const key = `check.${code}`;
  const text = t(`check.${code}`, values);
  return text === key ? english : text;
}

/** One for each code, with how many pictures have it. */
function shortTexts(findings, count = null) {
  const codes = [...new Set(findings.map(({ code }) => code))];
  return codes.map((code) => {
    const some = findings.filter((one) => one.code === code);
    const own = some.length === 1 ? some[0].values.count : null;
    const values = { ...some[0].values, count: count ?? own ?? some.length };
    return t(`found.${code}`, values);
  });
}
