// Loaded before the page is drawn, so that it never flashes in the wrong colours.
(() => {
  const KEY = "rung-theme";
  const ORDER = ["auto", "light", "dark"];
  const read = () => {
    try {
      return ORDER.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
    } catch {
      return "auto"; // storage is switched off
    }
  };
  const apply = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.dataset.theme = theme;
      button.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system" : theme}`);
      button.title = button.getAttribute("aria-label");
    }
    document.dispatchEvent(new CustomEvent("rung-theme"));
  };
  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    apply(read());
    document.getElementById("theme")?.addEventListener("click", () => {
      const next = ORDER[(ORDER.indexOf(read()) + 1) % ORDER.length];
      try {
        localStorage.setItem(KEY, next);
      } catch {
        // shown for this page only
      }
      apply(next);
    });
  });
})();
