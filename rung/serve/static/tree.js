// A conversation is a tree of messages: what is edited or asked again becomes a branch, and one
// can go back. No page here.
//
// node: {id, parent, role, content, children, time}; answers also {model, artefact, sampling,
// finish, usage, completion, seconds, error, edited, pair: {id, side}, said: {thumb, flags, vote, ...}}
import { newId } from "./dom.js";

const ROOT = "";

export function create(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system, nodes: {}, roots: [], chosen: {} };
}

export function childrenOf(conversation, parent) {
  return parent === ROOT ? conversation.roots : conversation.nodes[parent].children;
}

/** A new message below `parent` ("" for the first), which is shown from now on. */
export function add(conversation, parent, fields) {
  const node = { id: newId(), parent, children: [], time: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  childrenOf(conversation, parent).push(node.id);
  conversation.chosen[parent] = node.id;
  conversation.updated = node.time;
  return node;
}

/** The messages that are shown, from the first. */
export function path(conversation) {
  const found = [];
  let id = ROOT;
  for (;;) {
    const below = childrenOf(conversation, id);
    if (!below.length) return found;
    id = below.includes(conversation.chosen[id]) ? conversation.chosen[id] : below.at(-1);
    found.push(conversation.nodes[id]);
  }
}

/** The two answers that were asked for together, left first; or the one. */
export function pairOf(conversation, node) {
  if (!node.pair) return [node];
  const both = childrenOf(conversation, node.parent)
    .map((id) => conversation.nodes[id])
    .filter((other) => other.pair?.id === node.pair.id && !other.edited);
  return both.sort((a, b) => (a.pair.side === "left" ? -1 : 1) - (b.pair.side === "left" ? -1 : 1));
}

/** Versions of this message, oldest first; two answers asked for together are one version. */
export function versions(conversation, node) {
  const groups = [];
  for (const id of childrenOf(conversation, node.parent)) {
    const other = conversation.nodes[id];
    const group = groups.find((g) => g[0].pair && g[0].pair.id === other.pair?.id && !g[0].edited && !other.edited);
    if (group) group.push(other);
    else groups.push([other]);
  }
  return groups;
}

/** Shows `node` instead of its other versions. */
export function choose(conversation, node) {
  conversation.chosen[node.parent] = node.id;
  conversation.updated = Date.now();
}

/** What the model reads up to and with `node`: the system prompt and the messages above. A question
 *  whose answer failed is left out with it, so that roles take turns. */
export function messagesTo(conversation, node) {
  const found = [];
  for (let at = node; at; at = conversation.nodes[at.parent]) {
    if (at.role === "assistant" && !at.content.trim()) at = conversation.nodes[at.parent];
    else found.unshift({ role: at.role, content: at.content });
  }
  const system = conversation.system.trim();
  return system ? [{ role: "system", content: system }, ...found] : found;
}

export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.nodes[conversation.roots[0]];
  const text = (first?.content ?? "").replace(/\s+/g, " ").trim();
  return text.length > 60 ? `${[...text].slice(0, 58).join("")}...` : text || "New chat";
}

export function isEmpty(conversation) {
  return conversation.roots.length === 0;
}

/** Whether every word of `query` stands somewhere in the conversation. */
export function matches(conversation, query) {
  const texts = [titleOf(conversation), ...Object.values(conversation.nodes).map((node) => node.content)];
  const all = texts.join("\n").toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => all.includes(word));
}
