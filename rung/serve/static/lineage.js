// The picture: lines of the box that is pointed at light up, and unfinished boxes live.
const picture = document.querySelector("#picture");
const EVERY = 4000;

async function refresh() {
  if (document.hidden || picture.contains(document.activeElement)) return;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("#picture");
    if (!fresh || fresh.innerHTML === picture.innerHTML) return;
    const at = picture.querySelector(".ladder").scrollLeft;
    picture.replaceChildren(...fresh.childNodes);
    picture.querySelector(".ladder").scrollLeft = at;
  } catch {
    // The server is gone for a moment: the picture stays as it was.
  }
}

function light(event) {
  const box = event.target.closest?.(".box");
  for (const wire of picture.querySelectorAll(".wire")) {
    const touches = box && (wire.dataset.start === box.dataset.id || wire.dataset.end === box.dataset.id);
    wire.classList.toggle("lit", Boolean(touches));
  }
}

if (picture) {
  for (const name of ["pointerover", "focusin", "pointerleave", "focusout"]) {
    picture.addEventListener(name, name.endsWith("leave") || name.endsWith("out") ? () => light({ target: picture }) : light);
  }
  setInterval(() => picture.querySelector(".is-running, .is-saving") && refresh(), EVERY);
}
