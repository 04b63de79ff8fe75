// The list of runs: the cards of running stages live, and a choice of runs has its limit.
const active = document.querySelector("#active");
const changed = document.querySelector("#changed");
const form = document.querySelector("#compare");
const LIMIT = 8;
const EVERY = 3000;

const keys = (root) => [...root.querySelectorAll("[data-key]")].map((card) => card.dataset.key).join(" ");

async function refresh() {
  if (document.hidden) return;
  let text;
  try {
    const answer = await fetch("/runs/active", { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    text = await answer.text();
  } catch {
    changed.textContent = "The server does not answer; trying again.";
    return;
  }
  // Our own template, in which every value is escaped.
  const fresh = document.createElement("div");
  fresh.innerHTML = text;
  if (keys(fresh) !== keys(active)) {
    const chosen = form?.querySelector(":checked");
    if (!chosen && !document.activeElement?.matches("input, select")) return location.reload();
    changed.textContent = "The list of runs has changed: reload the page to see it.";
  } else {
    changed.textContent = "";
  }
  if (!active.contains(document.activeElement)) active.replaceChildren(...fresh.childNodes);
}

function choose() {
  const boxes = [...form.querySelectorAll("input[name=run]")];
  const chosen = boxes.filter((box) => box.checked).length;
  for (const box of boxes) box.disabled = !box.checked && chosen >= LIMIT;
  form.querySelector("button").disabled = chosen === 0;
  const said = chosen ? `${chosen} of at most ${LIMIT} chosen.` : `Choose up to ${LIMIT} runs with curves.`;
  document.querySelector("#chosen").textContent = said;
}

setInterval(refresh, EVERY);
document.addEventListener("visibilitychange", refresh);
if (form) {
  form.addEventListener("change", choose);
  choose();
}
