// The filters of the list of runs. The address holds them, so that a link shows the same list.

import { byId, debounce, el } from "./dom.js";

const FIELDS = ["q", "project", "verdict", "level", "learning", "status", "review", "tag", "group", "sort", "group_by"];
const CONDITION = /^(loss|config\..+?|metric\..+?)(<=|>=|!=|<|>|=)(.+)$/;
const VALUE_NAME = /^(loss$|config\.|metric\.)/;

/** Return the conditions of a text such as `config.lr<=0.1 loss<2` as `[name, filter]`; null for what is none. */
export function parseConditions(text) {
  const parts = text.match(/[^\s"]*"[^"]*"|\S+/g) ?? [];
  return parts.map((part) => {
    const found = CONDITION.exec(part);
    return found ? [found[1], found[2] === "=" ? found[3] : found[2] + found[3]] : null;
  });
}

/** Return conditions as a reader writes them. */
export const conditionsText = (conditions) => conditions.map(([name, filter]) => `${name}${/^(<=|>=|!=|<|>|=)/.test(filter) ? "" : "="}${filter}`).join(" ");

export class Filters {
  constructor(form, onChange) {
    this.form = form;
    const parameters = new URLSearchParams(location.search);
    for (const name of FIELDS) this.set(name, parameters.get(name) ?? "");
    this.conditions = [...parameters].filter(([name]) => VALUE_NAME.test(name));
    form.elements.where.value = conditionsText(this.conditions);
    const search = () => { if (this.readConditions()) onChange(); };
    form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
    const searchSoon = debounce(250, search);
    form.addEventListener("input", ({ target }) => (target.tagName === "SELECT" ? search : searchSoon)());
    form.addEventListener("reset", () => setTimeout(search));
  }

  /** Set a field; a value that a choice lacks becomes one. */
  set(name, value) {
    const field = this.form.elements[name];
    if (value && field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.append(el("option", { value }, value.replace(/^config\./, "")));
    }
    field.value = value;
  }

  value(name) { return this.form.elements[name].value.trim(); }

  get sort() { return this.value("sort"); }

  get groupBy() { return this.value("group_by"); }

  get isEmpty() { return !this.conditions.length && FIELDS.every((name) => ["sort", "group_by"].includes(name) || !this.value(name)); }

  /** Read the conditions from their field; return whether all are valid. */
  readConditions() {
    const field = this.form.elements.where;
    const conditions = parseConditions(field.value);
    const isValid = !conditions.includes(null);
    field.setAttribute("aria-invalid", String(!isValid));
    byId("where-hint").hidden = isValid;
    if (isValid) this.conditions = conditions;
    return isValid;
  }

  /** Return the parameters of `GET /runs`, without columns. */
  query() {
    const query = Object.fromEntries(FIELDS.filter((name) => name !== "group_by").map((name) => [name, this.value(name)]));
    for (const [name, filter] of this.conditions) query[name] = [...(query[name] ?? []), filter];
    return query;
  }

  /** Return the parameters of the page's address. */
  parameters() {
    const parameters = new URLSearchParams(FIELDS.map((name) => [name, this.value(name)]).filter(([, value]) => value));
    for (const [name, filter] of this.conditions) parameters.append(name, filter);
    return parameters;
  }
}
