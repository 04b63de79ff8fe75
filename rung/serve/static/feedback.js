// What people say of answers, on its way to the server: kept here until it is acknowledged, sent
// again with the same key after a failure, so that it is stored once.
import { post } from "./api.js";
import { local, newId, toast } from "./dom.js";
import { messagesTo } from "./tree.js";

const OUTBOX = "rung-outbox-"; // one entry an event: tabs do not overwrite each other
const PERSON = "rung-person";

function person() {
  const known = local.read(PERSON, "");
  if (known) return known;
  const fresh = `browser-${newId().slice(0, 8)}`;
  local.write(PERSON, fresh);
  return fresh;
}

export class Outbox {
  constructor() {
    this.waiting = new Map(); // key -> {event, resolve, reject}
    this.delay = 1000;
    this.sending = false;
    this.timer = 0;
    try {
      for (const name of Object.keys(localStorage).filter((one) => one.startsWith(OUTBOX))) {
        const event = local.read(name, null);
        if (event) this.waiting.set(event.key, { event, resolve: () => {}, reject: () => {} });
      }
    } catch {
      // no storage
    }
    addEventListener("online", () => this.#deliver());
    this.#deliver();
  }

  /** The server's reply, as soon as it is stored there. */
  send(fields) {
    const event = { key: newId(), annotator: person(), comment: "", ...fields };
    local.write(OUTBOX + event.key, event);
    return new Promise((resolve, reject) => {
      this.waiting.set(event.key, { event, resolve, reject });
      this.#deliver();
    });
  }

  async #deliver() {
    if (this.sending) return;
    this.sending = true;
    clearTimeout(this.timer);
    for (const [key, { event, resolve, reject }] of [...this.waiting]) {
      try {
        resolve(await post("/chat/feedback", event));
        this.delay = 1000;
      } catch (error) {
        if ([0, 401, 408, 429].includes(error.status) || error.status >= 500) {
          if (this.delay === 1000) toast("The server cannot store this now; it will be sent again.");
          this.timer = setTimeout(() => this.#deliver(), this.delay);
          this.delay = Math.min(60_000, 2 * this.delay);
          break;
        }
        toast(`Not stored: ${error.message}`);
        reject(error);
      }
      this.waiting.delete(key);
      try {
        localStorage.removeItem(OUTBOX + key);
      } catch {
        // it was never there
      }
    }
    this.sending = false;
    if (this.waiting.size && this.delay === 1000) this.#deliver(); // came in meanwhile
  }
}

const shown = (node) => ({
  text: node.content,
  model: node.model ?? "",
  artefact: node.artefact ?? "",
  stopped: node.finish === "stop",
  completion: node.completion ?? "",
});

/** An event about one answer. */
export function about(conversation, node, kind, value, comment = "") {
  const prompt = messagesTo(conversation, conversation.nodes[node.parent]);
  return { kind, value, comment, subject: node.id, prompt, answers: [shown(node)], sampling: node.sampling ?? {} };
}

/** A vote on two answers, left first; which models they are of, the server knows. */
export function vote(conversation, [left, right], verdict) {
  const prompt = messagesTo(conversation, conversation.nodes[left.parent]);
  const answers = [left, right].map((node) => ({ ...shown(node), model: "", artefact: "" }));
  return { kind: "vote", value: verdict, subject: left.pair.id, prompt, answers, sampling: left.sampling ?? {} };
}
