// Elements by hand: text is always text, never HTML.

/** h("p", { class: "quiet", onclick: f }, "text", child): an element. null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An icon of templates/icons.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "i");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", "aria-label": label, title: label, onclick, ...attributes, class: `icon ${attributes.class ?? ""}` }, icon(name));
}

export const find = (id) => document.getElementById(id);

/** 24 random hex digits. (crypto.randomUUID exists on https and localhost only.) */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A line at the bottom of the page, read out too. action: [word, what it does]. */
export function toast(text, action = null, seconds = 6) {
  const line = h("div", { class: "toast" }, h("span", {}, text));
  const close = () => line.remove();
  if (action) line.append(h("button", { type: "button", onclick: () => { close(); action[1](); } }, action[0]));
  find("toasts").append(line);
  setTimeout(close, seconds * 1000);
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // only https and localhost have a clipboard
    const area = h("textarea", { class: "unseen", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

export function saveFile(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** localStorage that is allowed to be switched off. */
export const local = {
  read(key, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(key)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      // full or switched off: it lasts as long as the page
    }
  },
};
