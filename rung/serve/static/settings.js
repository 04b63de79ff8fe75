// Sampling settings and the models: what a request is made of.
import { find, h, local } from "./dom.js";

const KEY = "rung-settings";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];
const ANY = "any"; // of the second list: any two models

export class Settings {
  constructor(onchange) {
    this.values = { keys: true, compare: false, model: "", other: "", ...local.read(KEY, {}) };
    this.models = [];
    this.form = find("settings-form");
    this.#fill();
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => {
      const { name, type, checked, value } = event.target;
      if (name) this.set(name, type === "checkbox" ? checked : value);
    });
    for (const name of ["model", "other"]) {
      find(name).addEventListener("change", (event) => {
        this.set(name, event.target.value);
        onchange();
      });
    }
  }

  set(name, value) {
    this.values[name] = value;
    local.write(KEY, this.values);
  }

  #fill() {
    for (const field of this.form.elements) {
      if (field.type === "checkbox") field.checked = Boolean(this.values[field.name]);
      else if (field.name) field.value = this.values[field.name] ?? "";
    }
  }

  reset() {
    for (const name of [...NUMBERS, "stop"]) this.set(name, "");
    this.#fill();
  }

  /** models: as /chat/models tells them. */
  setModels(models) {
    this.models = models;
    const names = models.map((model) => model.name);
    if (!names.includes(this.values.model)) this.values.model = names[0] ?? "";
    const others = names.length > 1 ? [...names, ANY] : names;
    if (!others.includes(this.values.other)) this.values.other = names[1] ?? names[0] ?? "";
    fill(find("model"), names.map((name) => [name, name]), this.values.model);
    const title = (name) => (name === ANY ? "any two models" : name);
    fill(find("other"), others.map((name) => [name, title(name)]), this.values.other);
  }

  artefactOf(name) {
    return this.models.find((model) => model.name === name)?.artefact ?? "";
  }

  /** Names to compare, none for any two. */
  get compared() {
    return this.values.other === ANY ? [] : [this.values.model, this.values.other];
  }

  /** Of a request: what is set. What does not fit its field is left to the server's default. */
  sampling() {
    const found = {};
    for (const name of NUMBERS) {
      const field = this.form.elements[name];
      if (field.value !== "" && field.validity.valid) found[name] = Number(field.value);
    }
    const stop = (this.values.stop ?? "").split("\n").filter(Boolean).slice(0, 4);
    if (stop.length) found.stop = stop;
    return found;
  }

  /** Names of fields whose value does not fit. */
  wrong() {
    return NUMBERS.filter((name) => !this.form.elements[name].validity.valid);
  }
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, title]) => h("option", { value }, title)));
  select.value = chosen;
}
