// The messages of a conversation on the page. Answers keep their element while they stream and
// when the rest is drawn anew.
import { figuresOf } from "./answers.js";
import { find, h, iconButton } from "./dom.js";
import { Prose } from "./prose.js";
import { pairOf, path, versions } from "./tree.js";

const LETTERS = { left: "A", right: "B" };
const VERDICTS = [["left", "A is better", "1"], ["right", "B is better", "2"], ["tie", "Tie", "3"], ["both_bad", "Both are bad", "4"]];

export class Thread {
  /** answers: which nodes stream. collect: whether feedback is wanted. */
  constructor({ answers, collect }) {
    Object.assign(this, { answers, collect });
    this.list = find("messages");
    this.box = find("thread");
    this.proses = new Map(); // node id -> Prose
    this.editing = null; // node id
    this.sticks = true; // whether it follows what is written
    let before = { top: 0, height: 0 };
    this.box.addEventListener("scroll", () => {
      const { scrollTop: top, scrollHeight: height } = this.box;
      const left = height - top - this.box.clientHeight;
      // Only somebody who scrolls up lets go; a page that grew or shrank does not.
      if (left < 48) this.sticks = true;
      else if (top < before.top && height >= before.height) this.sticks = false;
      before = { top, height };
      find("latest").hidden = left < 240;
    }, { passive: true });
    new ResizeObserver(() => this.sticks && this.toEnd()).observe(this.list);
    new ResizeObserver(() => this.sticks && this.toEnd()).observe(this.box);
  }

  toEnd() {
    this.sticks = true;
    this.box.scrollTop = this.box.scrollHeight;
  }

  clear() {
    this.proses.clear();
    this.editing = null;
  }

  append(node, piece) {
    this.proses.get(node.id)?.append(piece);
  }

  finish(node) {
    return this.proses.get(node.id)?.finish();
  }

  draw(conversation) {
    const { sticks } = this;
    const top = this.box.scrollTop;
    this.conversation = conversation;
    const focus = this.#focus();
    const shown = path(conversation);
    const wide = shown.some((node) => pairOf(conversation, node).length === 2 && !node.edited);
    this.list.classList.toggle("wide", wide);
    this.list.replaceChildren(...shown.map((node) => this.#item(node)));
    find("start").hidden = shown.length > 0;
    this.#focusAgain(focus);
    if (sticks) this.toEnd();
    else this.box.scrollTop = top;
  }

  #focus() {
    const at = document.activeElement;
    if (!this.list.contains(at)) return null;
    return { node: at.closest("[data-node]")?.dataset.node, act: at.dataset.act, value: at.value, area: at.tagName === "TEXTAREA" };
  }

  #focusAgain(focus) {
    if (!focus?.node) return;
    const message = this.element(focus.node);
    const area = focus.area && message?.querySelector("textarea");
    if (area) area.value = focus.value;
    (area || (focus.act && message?.querySelector(`[data-act="${focus.act}"]`)) || message)?.focus({ preventScroll: true });
  }

  element(id) {
    return this.list.querySelector(`[data-node="${CSS.escape(id)}"]`);
  }

  #item(node) {
    if (node.role === "user") return this.#question(node);
    const pair = node.edited ? [node] : pairOf(this.conversation, node);
    return pair.length === 2 ? this.#pair(node, pair) : this.#answer(node);
  }

  #message(node, label, kind, ...children) {
    return h("article", { class: `message ${kind}`, "data-node": node.id, tabindex: "-1", "aria-label": label, "aria-busy": this.answers.has(node) ? "true" : null }, ...children);
  }

  #question(node) {
    if (this.editing === node.id) return this.#message(node, "You", "from-user editing", this.#editor(node, "Send"));
    return this.#message(node, "You", "from-user",
      h("div", { class: "said", dir: "auto" }, node.content),
      h("div", { class: "acts" }, this.#versions(node),
        act("copy", "copy", "Copy"), act("edit", "edit", "Edit and send again (e)")));
  }

  #answer(node) {
    const streams = this.answers.has(node);
    const name = node.edited ? "You, in the model's place" : node.model || "Model";
    const head = h("div", { class: "who" }, h("span", {}, name), node.edited ? null : small(node.artefact?.slice(0, 8)));
    if (this.editing === node.id) return this.#message(node, name, "from-model editing", head, this.#editor(node, "Save the better answer"));
    return this.#message(node, name, `from-model${streams ? " streaming" : ""}`, head, this.#body(node), this.#outcome(node),
      h("div", { class: "acts" }, this.#versions(node), streams ? null : [
        act("copy", "copy", "Copy (c)"),
        act("retry", "retry", "Answer again (r)"),
        ...this.#opinions(node),
        small(figuresOf(node), "figures quiet-act"),
      ]));
  }

  #pair(node, pair) {
    const [left, right] = pair;
    const busy = pair.some((one) => this.answers.has(one));
    const said = left.said?.vote;
    const cards = pair.map((one) => this.#side(one, { kept: one === node, open: !busy, verdict: said }));
    return h("section", { class: "pair", "aria-label": "Two answers" },
      h("div", { class: "sides" }, cards),
      busy || said || left.model ? this.#verdict(pair, said) : this.#votes(left),
      h("div", { class: "acts" }, this.#versions(node), busy ? null : act("retry", "retry", "Answer both again (r)", { class: "" }, left.id)));
  }

  #side(node, { kept, open, verdict }) {
    const letter = LETTERS[node.pair.side];
    const won = verdict === node.pair.side ? " won" : "";
    const streams = this.answers.has(node) ? " streaming" : "";
    return this.#message(node, `Answer ${letter}${node.model ? `, ${node.model}` : ""}`, `from-model${won}${streams}${kept && node.model ? " kept" : ""}`,
      h("div", { class: "who" }, h("span", { class: "side-letter" }, letter), node.model ? h("span", {}, node.model) : null, small(node.artefact?.slice(0, 8))),
      this.#body(node), this.#outcome(node),
      h("div", { class: "acts" }, open ? [
        act("copy", "copy", "Copy"),
        ...(node.model ? this.#opinions(node) : []),
        node.model ? small(figuresOf(node), "figures") : null, // speed may tell who it is
        kept || !node.model ? null : h("button", { type: "button", class: "link", "data-act": "keep" }, "Go on with this one"),
      ] : []));
  }

  #votes(left) {
    if (!this.collect) {
      return h("div", { class: "votes", "data-node": left.id }, h("button", { type: "button", class: "button", "data-act": "names" }, "Show the names"));
    }
    return h("div", { class: "votes", role: "group", "aria-label": "Which answer is better?", "data-node": left.id },
      VERDICTS.map(([value, title, key]) => h("button", { type: "button", class: "button", "data-act": `vote-${value}` }, title, " ", h("kbd", { "aria-hidden": "true" }, key))));
  }

  #verdict([left, right], said) {
    if (!left.model) return null;
    const texts = {
      left: `You preferred A, ${left.model}, to B, ${right.model}.`,
      right: `You preferred B, ${right.model}, to A, ${left.model}.`,
      tie: `You called it a tie: A is ${left.model}, B is ${right.model}.`,
      both_bad: `You called both bad: A is ${left.model}, B is ${right.model}.`,
    };
    const text = texts[said] ?? `A is ${left.model}, B is ${right.model}. Not voted on.`;
    const undo = texts[said] ? h("button", { type: "button", class: "link", "data-act": "unvote" }, "Take it back") : null;
    return h("p", { class: "verdict", role: "status", "data-node": left.id }, text, " ", undo);
  }

  #body(node) {
    let prose = this.proses.get(node.id);
    if (!prose) {
      prose = new Prose();
      this.proses.set(node.id, prose);
      if (this.answers.has(node)) prose.append(node.content);
      else prose.show(node.content);
    }
    return prose.element;
  }

  #outcome(node) {
    if (node.error) return h("p", { class: "failed", role: "alert" }, node.error);
    if (node.finish === "length") return h("p", { class: "note" }, "Cut off at the longest answer (settings, or the end of the model's context).");
    if (node.finish === "stopped") return h("p", { class: "note" }, "Stopped.");
    return null;
  }

  #opinions(node) {
    if (!this.collect || node.edited || !node.content || !node.model) return [];
    const { thumb, flags = [] } = node.said ?? {};
    return [
      act("up", "up", "Good answer (+)", { class: "up quiet-act", "aria-pressed": String(thumb === "up") }),
      act("down", "down", "Bad answer (-)", { class: "down quiet-act", "aria-pressed": String(thumb === "down") }),
      act("flag", "flag", flags.length ? `Flagged: ${flags.join(", ")}` : "Flag or comment (f)", { class: "flag quiet-act", "aria-pressed": String(flags.length > 0) }),
      act("correct", "edit", "Edit the answer (a)", { class: "quiet-act" }),
    ];
  }

  #versions(node) {
    const all = versions(this.conversation, node);
    if (all.length < 2) return null;
    const at = all.findIndex((group) => group.includes(node));
    const to = (name, label, i) => act(name, name === "earlier" ? "left" : "right", label, { disabled: !all[i] }, node.id);
    return h("span", { class: "versions", role: "group", "aria-label": "Versions" },
      to("earlier", "Earlier version ([)", at - 1),
      h("span", { "aria-label": `version ${at + 1} of ${all.length}` }, `${at + 1}/${all.length}`),
      to("later", "Later version (])", at + 1));
  }

  #editor(node, word) {
    return h("form", { class: "editor" },
      h("textarea", { dir: "auto", "aria-label": node.role === "user" ? "Your message" : "The better answer", value: node.content }),
      h("div", { class: "dialog-end" },
        h("button", { type: "button", class: "button", "data-act": "cancel-edit" }, "Cancel"),
        h("button", { type: "submit", class: "button primary" }, word)));
  }
}

function act(name, picture, label, attributes = {}, node = null) {
  return iconButton(picture, label, null, { "data-act": name, "data-of": node, ...attributes, class: attributes.class ?? "quiet-act" });
}

function small(text, kind = "") {
  return text ? h("span", { class: `quiet ${kind}` }, text) : null;
}
