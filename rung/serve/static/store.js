// Conversations in this browser (IndexedDB). Where it is switched off they last as long as the page.

const NAME = "rung-chat";
const TABLE = "conversations";

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function openDatabase() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
  return promised(request);
}

export class Conversations {
  /** onchange: another tab stored or removed the conversation with this id. */
  static async open(onchange) {
    const store = new Conversations();
    store.all = new Map();
    store.waiting = new Map();
    try {
      store.database = await openDatabase();
      for (const one of await promised(store.#table("readonly").getAll())) store.all.set(one.id, one);
    } catch {
      store.database = null;
    }
    store.channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
    if (store.channel) {
      store.channel.onmessage = async ({ data: id }) => {
        const one = store.database && (await promised(store.#table("readonly").get(id)));
        if (one) store.all.set(id, one);
        else store.all.delete(id);
        onchange(id);
      };
    }
    addEventListener("pagehide", () => store.flush());
    document.addEventListener("visibilitychange", () => store.flush());
    return store;
  }

  #table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }

  get lasting() {
    return this.database !== null;
  }

  newestFirst() {
    return [...this.all.values()].sort((a, b) => b.updated - a.updated);
  }

  /** Stores soon: a stream changes its conversation many times a second. */
  put(conversation) {
    this.all.set(conversation.id, conversation);
    if (!this.waiting.has(conversation.id)) {
      this.waiting.set(conversation.id, setTimeout(() => this.#write(conversation.id), 400));
    }
  }

  async #write(id) {
    clearTimeout(this.waiting.get(id));
    this.waiting.delete(id);
    const conversation = this.all.get(id);
    if (!this.database || !conversation) return;
    await promised(this.#table("readwrite").put(conversation));
    this.channel?.postMessage(id);
  }

  flush() {
    return Promise.all([...this.waiting.keys()].map((id) => this.#write(id)));
  }

  async remove(id) {
    clearTimeout(this.waiting.get(id));
    this.waiting.delete(id);
    this.all.delete(id);
    if (!this.database) return;
    await promised(this.#table("readwrite").delete(id));
    this.channel?.postMessage(id);
  }
}
