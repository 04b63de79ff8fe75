// An answer on the page. The server turns its Markdown into blocks of safe HTML; while it streams,
// only what is not finished is asked for again, and finished blocks stay as they are.
import { post } from "./api.js";
import { copyText, h, iconButton } from "./dom.js";

const LONGEST = 200_000; // as in rung/serve/chat.py; longer texts are shown as they are
const known = new Map(); // text -> blocks

let waiting = [];

/** The blocks of a text. Texts asked for together go in one request. */
function blocksOf(text) {
  if (known.has(text)) return Promise.resolve(known.get(text));
  return new Promise((resolve, reject) => {
    waiting.push({ text, resolve, reject });
    if (waiting.length === 1) queueMicrotask(ask);
  });
}

async function ask() {
  const asked = waiting.slice(0, 50);
  waiting = waiting.slice(50);
  if (waiting.length) queueMicrotask(ask);
  try {
    const { rendered } = await post("/chat/render", { texts: asked.map((one) => one.text) });
    asked.forEach((one, i) => {
      if (known.size > 300) known.delete(known.keys().next().value);
      known.set(one.text, rendered[i]);
      one.resolve(rendered[i]);
    });
  } catch (error) {
    asked.forEach((one) => one.reject(error));
  }
}

/** The only place where HTML enters the page: made by rung/serve/markdown.py, cleaned there. */
function build(html) {
  const block = h("div", { class: "block" });
  block.innerHTML = html;
  for (const pre of block.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const language = /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "";
    const copy = iconButton("copy", "Copy the code", () => copyText(pre.textContent).then(() => done(copy)));
    const frame = h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, language), copy));
    pre.replaceWith(frame);
    pre.tabIndex = 0;
    frame.append(pre);
  }
  for (const table of block.querySelectorAll("table")) {
    const frame = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return block;
}

export function done(button) {
  const use = button.querySelector("use");
  const before = use.getAttribute("href");
  use.setAttribute("href", "#i-check");
  setTimeout(() => use.setAttribute("href", before), 1500);
}

/** Closes what an unfinished text has open, so that its last line does not flip back and forth. */
export function mend(text) {
  if ((text.match(/^ {0,3}(```|~~~)/gm) ?? []).length % 2) return text;
  const last = text.slice(text.lastIndexOf("\n\n") + 1).trimEnd();
  if (/[*`_~]$/.test(last)) return text;
  if ((last.match(/`/g) ?? []).length % 2) return `${text.trimEnd()}\``;
  if ((last.match(/\*\*/g) ?? []).length % 2) return `${text.trimEnd()}**`;
  return text;
}

export class Prose {
  constructor() {
    this.element = h("div", { class: "prose", dir: "auto" });
    this.tail = h("span", { class: "tail" });
    this.text = "";
    this.blocks = []; // {html, element}, in order
    this.settled = { chars: 0, blocks: 0 }; // what is finished and not asked for again
    this.covered = 0; // characters of the text that the blocks show
    this.pause = 60; // ms until the next look
    this.timer = 0;
    this.plain = false; // whether it shows the text as it is, without blocks
    this.working = Promise.resolve();
  }

  /** A finished text. */
  async show(text) {
    this.text = text;
    if (!text) return;
    if (!this.blocks.length) this.#plain(known.has(text) ? "" : text);
    await this.finish();
  }

  append(piece) {
    this.text += piece;
    this.#showTail();
    if (!this.timer) this.timer = setTimeout(() => (this.working = this.#look()), this.pause);
  }

  /** The whole text once more, now that nothing follows: links may be defined at its end. */
  async finish() {
    clearTimeout(this.timer);
    this.timer = -1;
    await this.working;
    this.tail.remove();
    if (!this.text) return this.#plain("");
    if (this.text.length > LONGEST) return this.#plain(this.text);
    try {
      const blocks = await blocksOf(this.text.replace(/\r\n?/g, "\n"));
      this.#replace(0, blocks);
    } catch {
      this.#plain(this.text);
    }
  }

  async #look() {
    const begun = performance.now();
    const sent = this.text.length;
    const source = this.text.slice(this.settled.chars).replace(/\r\n?/g, "\n");
    if (this.text.length <= LONGEST && !this.text.includes("\r")) {
      try {
        const { rendered } = await post("/chat/render", { texts: [mend(source)] });
        if (this.timer === -1) return;
        this.#replace(this.settled.blocks, rendered[0]);
        this.covered = sent;
        this.#settle(source, rendered[0]);
      } catch {
        // the plain tail shows the text until the next look
      }
    }
    this.#showTail();
    // Three times what a look takes: a slow server is asked less often.
    this.pause = Math.min(1500, Math.max(60, 3 * (performance.now() - begun)));
    this.timer = 0;
    if (this.text.length > sent) this.append("");
  }

  #replace(from, blocks) {
    if (this.plain) this.element.replaceChildren();
    this.plain = false;
    blocks.forEach(({ html }, i) => {
      const old = this.blocks[from + i];
      if (old?.html === html) return;
      const element = build(html);
      if (old) old.element.replaceWith(element);
      else this.element.append(element);
      this.blocks[from + i] = { html, element };
    });
    for (const spare of this.blocks.splice(from + blocks.length)) spare.element.remove();
  }

  /** All but the last two blocks are finished: what follows cannot change them. */
  #settle(source, blocks) {
    if (blocks.length < 3) return;
    const line = blocks.at(-2).line;
    let at = 0;
    for (let i = 0; i < line; i++) at = source.indexOf("\n", at) + 1;
    this.settled.chars += at;
    this.settled.blocks += blocks.length - 2;
  }

  /** What came since the last look, as text at the end of the last block. */
  #showTail() {
    const last = this.blocks.at(-1)?.element;
    const code = last?.lastElementChild?.matches(".code") ? last.querySelector("pre code") : null;
    const before = this.text.slice(0, this.covered);
    if (code) {
      this.tail.textContent = this.text.slice(this.covered);
      code.append(this.tail);
      return;
    }
    const kept = before.trimEnd();
    const text = this.text.slice(kept.length).trimEnd();
    const fresh = !last || /\n\s*\n$/.test(before) || /^\s*\n\s*\n/.test(text);
    this.tail.textContent = fresh ? text.trimStart() : text;
    if (!text) return this.tail.remove();
    if (fresh) this.element.append(this.tail);
    else deepest(last).append(this.tail);
  }

  #plain(text) {
    this.plain = true;
    for (const { element } of this.blocks.splice(0)) element.remove();
    this.element.replaceChildren(...(text ? [h("span", { class: "tail" }, text)] : []));
  }
}

const CONTAINERS = new Set(["UL", "OL", "LI", "BLOCKQUOTE", "P", "H1", "H2", "H3", "H4", "H5", "H6", "DIV", "TABLE", "TBODY", "TR", "TD", "PRE"]);

/** Where text that goes on after this block belongs: the last paragraph, item, cell or code. */
function deepest(element) {
  let at = element;
  while (at.tagName !== "P" && CONTAINERS.has(at.lastElementChild?.tagName)) at = at.lastElementChild;
  return at.tagName === "PRE" ? at.firstElementChild ?? at : at;
}
