/** The request parameters: a form built from the server's catalogue. Only values set by the user are sent. */

import { find, make } from "./dom.js";

/** Parameters without a form field: the page sets them itself or has its own controls for them. */
const OWN = new Set(["n", "stream", "model", "algorithm", "generation_algorithm", "dlm_events", "stop"]);

export class Settings {
  #algorithms = [];
  #common = [];
  #values = new Map();
  #default = "";

  /** @param {() => void} onChange called when a value or the algorithm changes */
  constructor(onChange) {
    this.onChange = onChange;
    this.algorithm = find("algorithm");
    this.compare = find("compare");
    this.fields = find("fields");
    this.context = make("input", { type: "checkbox", id: "context", checked: true });
    this.algorithm.addEventListener("change", () => this.#build());
    this.compare.addEventListener("change", () => this.#build());
    this.fields.addEventListener("input", (event) => this.#read(event.target));
    this.fields.addEventListener("submit", (event) => event.preventDefault());
    find("panel-reset").addEventListener("click", () => {
      this.#values.clear();
      this.#build();
    });
  }

  /** Load the response of `generation/algorithms`. */
  load(catalogue) {
    this.#algorithms = catalogue.algorithms ?? [];
    this.#common = (catalogue.parameters ?? []).filter((one) => !OWN.has(one.name));
    this.#default = catalogue.default ?? "";
    const options = (first) => [
      make("option", { value: "" }, first),
      ...this.#algorithms
        .filter((one) => one.available)
        .map((one) => make("option", { value: one.name, title: one.source ?? "" }, one.name)),
      ...this.#unavailable(),
    ];
    this.algorithm.replaceChildren(...options(this.#default ? `${this.#default} (default)` : "default"));
    this.compare.replaceChildren(...options("nothing"));
    this.algorithm.disabled = this.compare.disabled = false;
    this.#build();
  }

  /** The one or two algorithms to run; an empty name is the server's default. */
  get names() {
    return this.compare.value ? [this.algorithm.value, this.compare.value] : [this.algorithm.value];
  }

  /** Display name of an algorithm; resolves an empty name to the default. */
  label(name) {
    return name || this.#default || "default";
  }

  get sendsContext() {
    return this.context.checked;
  }

  set sendsContext(value) {
    this.context.checked = value;
  }

  /** Number of values set. */
  get count() {
    const names = new Set(this.names.flatMap((name) => Object.keys(this.body(name))));
    names.delete("generation_algorithm");
    return names.size;
  }

  /** The first invalid field, or null. */
  get invalid() {
    return this.fields.querySelector("input:invalid, select:invalid");
  }

  /** The request body fields for an algorithm. */
  body(name) {
    const body = name ? { generation_algorithm: name } : {};
    for (const parameter of [...this.#ofAlgorithm(name), ...this.#common]) {
      if (this.#values.has(parameter.name)) body[parameter.name] = this.#values.get(parameter.name);
    }
    return body;
  }

  #unavailable() {
    const missing = this.#algorithms.filter((one) => !one.available);
    if (!missing.length) return [];
    const options = missing.map((one) => make("option", { disabled: true, title: one.reason ?? "" }, one.name));
    return [make("optgroup", { label: "not available for this model" }, ...options)];
  }

  #ofAlgorithm(name) {
    const found = this.#algorithms.find((one) => one.name === (name || this.#default));
    return (found?.parameters ?? []).filter((one) => !OWN.has(one.name));
  }

  #build() {
    const groups = [];
    const taken = new Set();
    for (const name of this.names) {
      const parameters = this.#ofAlgorithm(name).filter((one) => !taken.has(one.name));
      parameters.forEach((one) => taken.add(one.name));
      const found = this.#algorithms.find((one) => one.name === (name || this.#default));
      const source = found?.source ? `From ${found.source}.` : "";
      groups.push(this.#group(this.label(name), source, parameters, "No parameters of its own."));
    }
    groups.push(
      this.#group(
        "All algorithms",
        "",
        this.#common.filter((one) => !taken.has(one.name)),
        "",
      ),
    );
    groups.push(
      make(
        "fieldset",
        {},
        make("legend", {}, "Conversation"),
        make("label", { class: "check" }, this.context, "Include earlier messages"),
      ),
    );
    this.fields.replaceChildren(...groups);
    this.onChange();
  }

  #group(title, note, parameters, none) {
    const rows = parameters.map((one) => this.#row(one));
    const about = [note, rows.length ? "" : none].filter(Boolean).join(" ");
    return make("fieldset", {}, make("legend", {}, title), about ? make("p", { class: "note" }, about) : null, ...rows);
  }

  #row(parameter) {
    const id = `field-${parameter.name}`;
    const range = rangeOf(parameter);
    const description = [parameter.description, range].filter(Boolean).join(" ");
    const input = this.#input(parameter, id);
    if (description) input.setAttribute("aria-describedby", `${id}-about`);
    return make(
      "div",
      { class: "field" },
      make("label", { for: id }, ...breakable(parameter.name)),
      input,
      make("p", { class: "problem", id: `${id}-problem`, role: "alert", hidden: true }),
      description ? make("p", { class: "note", id: `${id}-about` }, description) : null,
    );
  }

  #input(parameter, id) {
    const value = this.#values.get(parameter.name);
    const standard = parameter.default === null || parameter.default === undefined ? "none" : String(parameter.default);
    const shared = { id, name: parameter.name, "data-type": parameter.type };
    const choices = parameter.type === "boolean" ? ["true", "false"] : parameter.choices?.map(String);
    if (choices?.length) {
      const others = choices.filter((one) => one !== standard).map((one) => make("option", { value: one }, one));
      const select = make("select", shared, make("option", { value: "" }, standard), ...others);
      select.value = value === undefined ? "" : String(value);
      return select;
    }
    const numeric = parameter.type === "number" || parameter.type === "integer";
    return make("input", {
      ...shared,
      type: numeric ? "number" : "text",
      inputMode: numeric ? (parameter.type === "integer" ? "numeric" : "decimal") : null,
      min: numeric ? parameter.minimum : null,
      max: numeric ? parameter.maximum : null,
      step: numeric ? (parameter.type === "integer" ? "1" : "any") : null,
      placeholder: standard,
      autocomplete: "off",
      value: value === undefined ? null : String(value),
    });
  }

  #read(input) {
    if (!input.name) return;
    const problem = find(`field-${input.name}-problem`);
    const valid = input.validity.valid;
    problem.textContent = valid ? "" : input.validationMessage;
    problem.hidden = valid;
    if (input.value === "" || !valid) this.#values.delete(input.name);
    else this.#values.set(input.name, typed(input.dataset.type, input.value));
    this.onChange();
  }
}

/** A name that may wrap after its underscores. */
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part) => [part, make("wbr")]);
}

function typed(type, text) {
  if (type === "number" || type === "integer") return Number(text);
  return type === "boolean" ? text === "true" : text;
}

function rangeOf({ minimum: low, maximum: high, choices }) {
  if (choices?.length) return "";
  const [from, to] = [Number.isFinite(low), Number.isFinite(high) && high <= Number.MAX_SAFE_INTEGER];
  if (from && to) return `${low} to ${high}.`;
  if (from) return `${low} or more.`;
  return to ? `${high} or less.` : "";
}
