// The chat page: what clicks and keys do.
import { get, post } from "./api.js";
import { Answers } from "./answers.js";
import { copyText, find, saveFile, toast } from "./dom.js";
import { Outbox, about, vote } from "./feedback.js";
import { History } from "./history.js";
import { listen } from "./keys.js";
import { done } from "./prose.js";
import { Settings } from "./settings.js";
import { Conversations } from "./store.js";
import { Thread } from "./thread.js";
import { fromText, toLine, toLines } from "./transfer.js";
import * as tree from "./tree.js";

const page = document.querySelector(".chat");
const collect = page.dataset.collect === "yes";
const narrow = matchMedia("(max-width: 820px)");
const text = find("text");

let current = tree.create();
const removed = new Set(); // ids: an answer that ends late brings no conversation back
const answers = new Answers({ onText, onEnd });
const thread = new Thread({ answers, collect });
const settings = new Settings(() => drawTools());
const outbox = collect ? new Outbox() : null;
const store = await Conversations.open(onOtherTab);
const history = new History(store, { open, remove });

// drawing

function draw() {
  thread.draw(current);
  drawTools();
}

function drawTools() {
  const { compare } = settings.values;
  find("compare").setAttribute("aria-pressed", String(compare));
  find("other").hidden = find("versus").hidden = !compare;
  const busy = answers.any(current);
  find("stop").hidden = !busy;
  find("send").hidden = busy;
  find("title").value = current.title;
  find("title").placeholder = tree.titleOf(current);
  if (document.activeElement !== find("system")) find("system").value = current.system;
  const names = compare
    ? "Each message is answered twice, without names; say which answer is better."
    : "Markdown and code are shown as such. Edit a question or ask again: earlier versions are kept.";
  find("start-text").textContent = settings.models.length ? names : "This server has no model that chats.";
  document.title = `${tree.isEmpty(current) ? "Chat" : tree.titleOf(current)} - Rung`;
}

function keep(conversation) {
  if (!tree.isEmpty(conversation) && !removed.has(conversation.id)) store.put(conversation);
}

function announce(words) {
  const line = document.createElement("p");
  line.textContent = words;
  find("announce").append(line);
  while (find("announce").children.length > 20) find("announce").firstChild.remove();
}

// answers

async function refreshModels() {
  try {
    settings.setModels((await get("/chat/models")).models);
  } catch (error) {
    toast(error.message);
  }
  drawTools();
}

async function send(words) {
  const content = words.trim();
  if (!content || answers.any(current)) return;
  text.value = "";
  const parent = tree.path(current).at(-1)?.id ?? "";
  await ask(tree.add(current, parent, { role: "user", content }));
}

/** Answers below a question: one, or two whose names stay with the server. */
async function ask(question) {
  const conversation = current;
  const wrong = settings.wrong();
  if (wrong.length) toast(`Not used, out of its range: ${wrong.join(", ")}.`);
  const sampling = settings.sampling();
  const body = { messages: tree.messagesTo(conversation, question), ...sampling };
  thread.sticks = true;
  const add = (fields) => tree.add(conversation, question.id, { role: "assistant", content: "", sampling, ...fields });
  const asked = [];
  if (settings.values.compare) {
    let pair;
    try {
      pair = (await post("/chat/arena", { models: settings.compared })).id;
    } catch (error) {
      add({ error: error.message });
      keep(conversation);
      return draw();
    }
    const both = ["left", "right"].map((side) => add({ pair: { id: pair, side } }));
    tree.choose(conversation, both[0]);
    for (const node of both) asked.push(answers.ask(conversation, node, `/chat/arena/${pair}/${node.pair.side}/completions`, body));
  } else {
    const { model } = settings.values;
    const node = add({ model, artefact: settings.artefactOf(model) });
    asked.push(answers.ask(conversation, node, "/v1/chat/completions", { model, ...body }));
  }
  keep(conversation);
  window.history.replaceState(null, "", `#${conversation.id}`);
  draw();
  thread.toEnd();
  history.show(current.id);
  await Promise.all(asked);
}

const spoken = new Map(); // node id -> characters that were read out

function onText(node, piece) {
  thread.append(node, piece);
  if (node.pair) return; // two voices at once help nobody
  const from = spoken.get(node.id) ?? 0;
  const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => node.content.lastIndexOf(mark)));
  if (end - from > 60) {
    announce(node.content.slice(from, end + 1));
    spoken.set(node.id, end + 1);
  }
}

function onEnd(conversation, node) {
  if (node.pair) announce(`Answer ${node.pair.side === "left" ? "A" : "B"} is complete.`);
  else announce(node.error ?? node.content.slice(spoken.get(node.id) ?? 0));
  spoken.delete(node.id);
  conversation.updated = Date.now();
  keep(conversation);
  thread.finish(node);
  if (conversation === current) draw();
  history.show(current.id);
}

function showVersion(node, step) {
  const all = tree.versions(current, node);
  const to = all[all.findIndex((group) => group.includes(node)) + step]?.[0];
  if (!to) return;
  tree.choose(current, to);
  thread.sticks = false;
  keep(current);
  draw();
  thread.element(to.id)?.focus({ preventScroll: true });
}

// feedback

const say = (node, fields) => {
  node.said = { ...node.said, ...fields };
  keep(current);
  draw();
};

function thumb(node, which) {
  const value = node.said?.thumb === which ? "none" : which;
  say(node, { thumb: value });
  outbox.send(about(current, node, "thumb", value)).catch(() => say(node, { thumb: "none" }));
}

async function flag(node) {
  const dialog = find("flagging");
  const { flags = [], comment = "" } = node.said ?? {};
  for (const box of dialog.querySelectorAll("[name=flag]")) box.checked = flags.includes(box.value);
  find("flag-comment").value = comment;
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "send") return;
  const chosen = [...dialog.querySelectorAll("[name=flag]:checked")].map((box) => box.value);
  const words = find("flag-comment").value.trim();
  const changed = words !== comment;
  if (chosen.join() !== flags.join()) outbox.send(about(current, node, "flag", chosen, words)).catch(() => {});
  if (changed) outbox.send(about(current, node, "comment", words)).catch(() => {});
  say(node, { flags: chosen, comment: words });
  toast("Thank you, stored with this conversation.", null, 3);
}

async function castVote(node, verdict) {
  const pair = tree.pairOf(current, node);
  if (pair.length < 2 || pair[0].model || pair[0].said?.vote || pair.some((one) => answers.has(one))) return;
  const conversation = current;
  pair[0].said = { ...pair[0].said, vote: verdict };
  const better = { left: pair[0], right: pair[1] }[verdict];
  if (better) tree.choose(conversation, better);
  keep(conversation);
  draw();
  try {
    name(conversation, pair, (await outbox.send(vote(conversation, pair, verdict))).names);
  } catch {
    delete pair[0].said.vote; // it was refused, and a line said why
    draw();
  }
}

function name(conversation, pair, names) {
  for (const node of pair) Object.assign(node, { model: names[node.pair.side].model, artefact: names[node.pair.side].artefact });
  keep(conversation);
  if (conversation === current) draw();
}

async function tellNames(node) {
  const pair = tree.pairOf(current, node);
  try {
    name(current, pair, (await post(`/chat/arena/${pair[0].pair.id}/names`, {})).names);
  } catch (error) {
    toast(error.message);
  }
}

function unvote(node) {
  const pair = tree.pairOf(current, node);
  outbox.send(vote(current, pair, "none")).then(() => toast("The vote was taken back.", null, 3)).catch(() => {});
  say(pair[0], { vote: "none" });
}

// editing

function edit(node) {
  thread.editing = node.id;
  thread.sticks = false;
  draw();
  const area = thread.element(node.id).querySelector("textarea");
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

function stopEditing(node) {
  thread.editing = null;
  draw();
  if (node) thread.element(node.id)?.focus({ preventScroll: true });
}

async function saveEdit(node, value) {
  const content = value.trim();
  thread.editing = null;
  if (!content || (node.role === "assistant" && content === node.content)) return stopEditing(node);
  if (node.role === "user") {
    if (answers.any(current)) return toast("An answer is being written; stop it first.");
    return ask(tree.add(current, node.parent, { role: "user", content }));
  }
  const event = about(current, node, "edit", content);
  const better = tree.add(current, node.parent, { role: "assistant", content, edited: true, model: node.model, artefact: node.artefact });
  keep(current);
  draw();
  thread.element(better.id)?.focus({ preventScroll: true });
  outbox.send(event).then(() => toast("The better answer was stored.", null, 3)).catch(() => {});
}

// conversations

function open(id, { focus = true } = {}) {
  current = store.all.get(id) ?? tree.create(current.system);
  thread.clear();
  thread.sticks = true;
  window.history.replaceState(null, "", store.all.has(current.id) ? `#${current.id}` : location.pathname);
  closePanels();
  draw();
  thread.toEnd();
  history.show(current.id);
  if (focus && !narrow.matches) text.focus();
}

function remove(id) {
  const gone = store.all.get(id);
  removed.add(id);
  answers.stop(gone);
  store.remove(id);
  if (id === current.id) open("");
  else history.show(current.id);
  toast(`"${tree.titleOf(gone)}" was deleted.`, ["Undo", () => { removed.delete(id); store.put(gone); open(id); }]);
}

function onOtherTab(id) {
  if (id === current.id && !answers.any(current) && thread.editing === null && store.all.has(id)) {
    current = store.all.get(id);
    thread.clear();
    draw();
  }
  history.show(current.id);
}

function exportAs(lines, what) {
  if (!lines) return toast(`There is nothing to export${what ? ` in ${what}` : ""}.`);
  saveFile(`rung-chats-${new Date().toISOString().slice(0, 10)}.jsonl`, lines, "application/jsonl");
}

async function importFile(file) {
  const { conversations, problems } = fromText(await file.text());
  for (const conversation of conversations) store.put(conversation);
  const number = conversations.length;
  if (number) open(conversations[0].id);
  toast(`${number} conversation${number === 1 ? "" : "s"} imported${problems.length ? `, ${problems.length} not: ${problems.slice(0, 3).join("; ")}` : ""}.`, null, problems.length ? 15 : 6);
}

// panels

function toggleSidebar() {
  const hidden = page.classList.toggle("no-list");
  find("sidebar-toggle").setAttribute("aria-expanded", String(!hidden));
  find("backdrop").hidden = hidden || !narrow.matches;
  if (!hidden && narrow.matches) find("sidebar").querySelector("button").focus();
}

function toggleSettings() {
  const panel = find("settings");
  panel.hidden = !panel.hidden;
  find("settings-toggle").setAttribute("aria-expanded", String(!panel.hidden));
  find("backdrop").hidden = panel.hidden || !matchMedia("(max-width: 1080px)").matches;
  (panel.hidden ? find("settings-toggle") : find("system")).focus();
}

/** Panels that lie over the conversation. */
function closePanels() {
  let closed = false;
  if (!find("settings").hidden && matchMedia("(max-width: 1080px)").matches) {
    toggleSettings();
    closed = true;
  }
  if (narrow.matches && !page.classList.contains("no-list")) {
    toggleSidebar();
    closed = true;
  }
  return closed;
}

// what can be done: on the page, and on a message

const DO = {
  new: () => open(""),
  write: () => text.focus(),
  search: () => {
    if (page.classList.contains("no-list")) toggleSidebar();
    find("search").focus();
  },
  sidebar: toggleSidebar,
  settings: toggleSettings,
  keys: () => find("keys").showModal(),
  compare: () => {
    settings.set("compare", !settings.values.compare);
    drawTools();
  },
  stop: () => answers.stop(current),
  latest: () => thread.toEnd(),
  reset: () => settings.reset(),
  import: () => find("import").click(),
  export: () => exportAs(toLine(current), "this chat"),
  "export-all": () => exportAs(toLines(store.newestFirst()), ""),
  "close-panels": closePanels,
  next: () => step(1),
  previous: () => step(-1),
  escape: () => {
    if (thread.editing !== null) stopEditing(current.nodes[thread.editing]);
    else if (closePanels()) text.focus();
    else if (answers.any(current)) answers.stop(current);
    else document.activeElement?.blur();
  },
};

const ACT = {
  copy: (node) => copyText(node.content).then(() => announce("Copied.")),
  edit: (node) => edit(node.role === "user" ? node : current.nodes[node.parent]),
  "cancel-edit": (node) => stopEditing(node),
  retry: (node) => !answers.any(current) && ask(node.role === "user" ? node : current.nodes[node.parent]),
  earlier: (node) => showVersion(node, -1),
  later: (node) => showVersion(node, 1),
  keep: (node) => {
    tree.choose(current, node);
    keep(current);
    draw();
  },
  names: tellNames,
};
if (collect) {
  Object.assign(ACT, {
    up: (node) => node.model && thumb(node, "up"),
    down: (node) => node.model && thumb(node, "down"),
    flag: (node) => node.model && flag(node),
    correct: (node) => node.model && !answers.has(node) && edit(node),
    unvote,
  });
  for (const verdict of ["left", "right", "tie", "both_bad"]) ACT[`vote-${verdict}`] = (node) => node.pair && castVote(node, verdict);
}

/** The message that has the focus, else the last one. */
function messageAtHand() {
  const id = document.activeElement?.closest?.("[data-node]")?.dataset.node;
  return current.nodes[id] ?? tree.path(current).at(-1);
}

function step(by) {
  const all = [...find("messages").querySelectorAll("article")];
  const at = all.indexOf(document.activeElement?.closest?.("article"));
  const to = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by];
  to?.focus();
  to?.scrollIntoView({ block: "nearest" });
}

function act(name) {
  if (DO[name]) return DO[name]();
  let node = messageAtHand();
  if (!node || !ACT[name]) return undefined;
  if (["up", "down", "flag", "correct", "copy"].includes(name) && node.role === "user") node = tree.path(current).at(-1);
  if (["up", "down", "flag", "correct"].includes(name) && (node.role === "user" || node.edited)) return undefined;
  return ACT[name](node);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do], button[data-act], [data-do=close-panels]");
  if (!button) return;
  if (button.dataset.do) return DO[button.dataset.do]();
  const node = current.nodes[button.dataset.of ?? button.closest("[data-node]")?.dataset.node];
  if (node) ACT[button.dataset.act]?.(node);
  if (button.dataset.act === "copy") done(button);
});

document.addEventListener("submit", (event) => {
  if (event.target.matches(".editor")) {
    event.preventDefault();
    const node = current.nodes[event.target.closest("[data-node]").dataset.node];
    saveEdit(node, event.target.querySelector("textarea").value);
  }
});

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(text.value);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || event.shiftKey || event.target.tagName !== "TEXTAREA") return;
  const form = event.target.closest("#composer, .editor");
  if (!form || (form.matches(".editor") && !event.ctrlKey && !event.metaKey)) return;
  event.preventDefault();
  form.requestSubmit();
});

find("title").addEventListener("change", (event) => {
  current.title = event.target.value.trim();
  keep(current);
  drawTools();
  history.show(current.id);
});
find("system").addEventListener("input", (event) => {
  current.system = event.target.value;
  keep(current);
});
find("import").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) importFile(file);
  event.target.value = "";
});

listen(act, { usable: () => settings.values.keys, collect });
if (narrow.matches) page.classList.add("no-list");
if (!store.lasting) toast("This browser stores nothing here: conversations last as long as this page.");
open(location.hash.slice(1), { focus: true });
await refreshModels();
page.dataset.ready = "yes";
