// Conversations out of the browser and into it: JSONL in the shape that `rung dataset` reads.
import { add, create, path } from "./tree.js";

/** {"messages": [...]} of what is shown, "" where nothing was answered or asked. */
export function toLine(conversation) {
  const messages = [];
  for (const node of path(conversation)) {
    if (!node.content.trim()) break; // an answer that failed, and what came after it
    messages.push({ role: node.role, content: node.content });
  }
  if (!messages.length) return "";
  const system = conversation.system.trim();
  if (system) messages.unshift({ role: "system", content: system });
  return `${JSON.stringify({ messages })}\n`;
}

export const toLines = (conversations) => conversations.map(toLine).join("");

const ROLES = { system: "system", developer: "system", user: "user", human: "user", assistant: "assistant", gpt: "assistant" };

/** {conversations, problems}: one a line, or a list of them; a wrong one is named by its line. */
export function fromText(text) {
  const conversations = [];
  const problems = [];
  for (const [where, read] of rows(text)) {
    try {
      conversations.push(fromRow(read()));
    } catch (error) {
      problems.push(`${where}: ${error.message}`);
    }
  }
  return { conversations, problems };
}

function rows(text) {
  const trimmed = text.replace(/^\ufeff/, "").trim();
  if (trimmed.startsWith("[")) {
    try {
      return JSON.parse(trimmed).map((row, i) => [`row ${i + 1}`, () => row]);
    } catch (error) {
      return [["file", () => { throw error; }]];
    }
  }
  return trimmed.split("\n").map((line, i) => [line, `line ${i + 1}`])
    .filter(([line]) => line.trim())
    .map(([line, where]) => [where, () => JSON.parse(line)]);
}

function fromRow(row) {
  const messages = row?.messages ?? row?.conversations;
  if (!Array.isArray(messages) || !messages.length) throw new Error("no list of messages");
  const conversation = create();
  let parent = "";
  for (const [i, message] of messages.entries()) {
    const role = ROLES[message?.role ?? message?.from];
    const content = message?.content ?? message?.value;
    if (!role) throw new Error(`message ${i + 1} has no known role`);
    if (typeof content !== "string") throw new Error(`message ${i + 1} has no text`);
    if (role === "system") {
      if (i > 0) throw new Error("a system message must come first");
      conversation.system = content;
    } else {
      const expected = parent === "" || conversation.nodes[parent].role === "assistant" ? "user" : "assistant";
      if (role !== expected) throw new Error(`message ${i + 1} is from ${role}, expected ${expected}`);
      parent = add(conversation, parent, { role, content }).id;
    }
  }
  if (parent === "") throw new Error("no message of a user");
  return conversation;
}
