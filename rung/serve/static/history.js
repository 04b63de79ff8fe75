// The list of conversations: by day, searched, opened, deleted.
import { find, h, iconButton } from "./dom.js";
import { isEmpty, matches, titleOf } from "./tree.js";

const DAY = 86_400_000;

function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 6 * DAY) return "This week";
  return new Date(time).toLocaleDateString(undefined, { month: "long", year: "numeric" });
}

export class History {
  /** open(id), remove(id): what a click does. */
  constructor(store, { open, remove }) {
    Object.assign(this, { store, open, remove });
    find("search").addEventListener("input", () => this.show(this.current));
  }

  show(current) {
    this.current = current;
    const query = find("search").value.trim();
    const all = this.store.newestFirst().filter((one) => !isEmpty(one));
    const found = query ? all.filter((one) => matches(one, query)) : all;
    const list = find("conversations");
    const focused = document.activeElement?.closest?.("#conversations [data-id]")?.dataset.id;
    list.replaceChildren(...this.#groups(found));
    if (!found.length) list.append(h("p", { class: "none" }, query ? `Nothing about "${query}".` : "Nothing here yet."));
    if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"] .open`)?.focus();
  }

  #groups(found) {
    const groups = [];
    for (const one of found) {
      const day = dayOf(one.updated);
      if (groups.at(-1)?.day !== day) groups.push({ day, items: [] });
      groups.at(-1).items.push(this.#item(one));
    }
    return groups.flatMap(({ day, items }) => [h("h3", {}, day), h("ul", { "aria-label": day }, items)]);
  }

  #item(conversation) {
    const open = conversation.id === this.current;
    const title = titleOf(conversation);
    return h("li", { "data-id": conversation.id, "data-open": open },
      h("button", { type: "button", class: "open", dir: "auto", title, "aria-current": open ? "true" : null, onclick: () => this.open(conversation.id) }, title),
      iconButton("trash", `Delete "${title}"`, () => this.remove(conversation.id)));
  }
}
