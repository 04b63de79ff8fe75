// Asking the model: streams into nodes of a conversation, several at a time, each can be stopped.
import { complete } from "./api.js";

export class Answers {
  /** onText(node, piece) for each piece, onEnd(conversation, node) once. */
  constructor({ onText, onEnd }) {
    this.running = new Map(); // node id -> {controller, conversation}
    this.onText = onText;
    this.onEnd = onEnd;
  }

  has(node) {
    return this.running.has(node.id);
  }

  any(conversation) {
    return [...this.running.values()].some((one) => one.conversation === conversation);
  }

  /** Stops the answers of a conversation; what came so far stays. */
  stop(conversation) {
    for (const one of this.running.values()) if (one.conversation === conversation) one.controller.abort();
  }

  async ask(conversation, node, path, body) {
    const controller = new AbortController();
    this.running.set(node.id, { controller, conversation });
    const begun = performance.now();
    let first = 0;
    try {
      for await (const chunk of complete(path, body, controller.signal)) {
        node.completion ??= chunk.id;
        if (chunk.usage) node.usage = { prompt: chunk.usage.prompt_tokens, answer: chunk.usage.completion_tokens };
        const choice = chunk.choices?.[0];
        if (choice?.finish_reason) node.finish = choice.finish_reason;
        const piece = choice?.delta?.content;
        if (!piece) continue;
        first ||= performance.now();
        node.content += piece;
        this.onText(node, piece);
      }
    } catch (error) {
      if (error.name === "AbortError") node.finish = "stopped";
      else node.error = error.retryAfter ? `${error.message} Try again in ${error.retryAfter} s.` : error.message;
    } finally {
      node.seconds = { first: (first - begun) / 1000, all: (performance.now() - begun) / 1000 };
      this.running.delete(node.id);
      this.onEnd(conversation, node);
    }
  }
}

/** "128 tokens, 43/s" of an answer, "" where it is not known. */
export function figuresOf(node) {
  if (!node.usage || !node.seconds || node.error) return "";
  const { answer } = node.usage;
  const after = node.seconds.all - node.seconds.first; // the first token waits for the prompt
  const speed = answer > 4 && after > 0.05 ? `, ${Math.round((answer - 1) / after)}/s` : "";
  return `${answer} token${answer === 1 ? "" : "s"}${speed}`;
}
