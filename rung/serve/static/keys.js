// Keys of the page. Single keys work outside of fields and can be switched off.
import { find, h } from "./dom.js";

const KEYS = [
  ["?", "keys", "these keys"],
  ["n", "new", "new chat"],
  ["m", "write", "write a message"],
  ["/", "search", "search conversations"],
  ["b", "sidebar", "list of conversations"],
  [",", "settings", "settings"],
  ["x", "compare", "compare two answers"],
  ["j", "next", "next message"],
  ["k", "previous", "message before"],
  ["e", "edit", "edit the question and send it again"],
  ["r", "retry", "answer again"],
  ["c", "copy", "copy the answer"],
  ["[", "earlier", "earlier version"],
  ["]", "later", "later version"],
];
const FEEDBACK = [
  ["1", "vote-left", "A is better"],
  ["2", "vote-right", "B is better"],
  ["3", "vote-tie", "tie"],
  ["4", "vote-both_bad", "both are bad"],
  ["+", "up", "good answer"],
  ["-", "down", "bad answer"],
  ["f", "flag", "flag the answer"],
  ["a", "correct", "edit the answer"],
];
const FIXED = [["Enter", "send"], ["Shift Enter", "begin a line"], ["Esc", "stop the answer; close what is open"]];

/** act(name) is called for each key; usable() says whether single keys are on. */
export function listen(act, { usable, collect }) {
  const keys = collect ? [...KEYS, ...FEEDBACK] : KEYS;
  const rows = [...FIXED, ...keys.map(([key, , text]) => [key, text])];
  find("keys-list").replaceChildren(...rows.map(([key, text]) => (
    h("div", {}, h("dt", {}, key.split(" ").map((one) => h("kbd", {}, one))), h("dd", {}, text))
  )));
  const byKey = new Map(keys.map(([key, name]) => [key, name]));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") return act("escape");
    if (event.ctrlKey || event.metaKey || event.altKey || !usable() || inField(event.target)) return;
    const name = byKey.get(event.key);
    if (!name) return;
    event.preventDefault();
    act(name);
  });
}

function inField(element) {
  if (element.isContentEditable) return true;
  return element.matches?.("textarea, select, input:not([type=checkbox], [type=radio], [type=button])") ?? false;
}
