// Draws the charts in the page's own colours, again when the colour scheme changes.
"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const slot = (n) => colour(`--c${n % 8}`);

  function axis(own) {
    return { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true, ...own };
  }

  function draw(element) {
    const spec = JSON.parse(element.dataset.spec);
    const data = spec.data.map(({ slot: n, ...trace }) => {
      if (trace.type === "heatmap") {
        return { ...trace, showscale: false, colorscale: [[0, colour("--panel")], [1, slot(n)]] };
      }
      return {
        ...trace,
        line: { width: 2, ...(trace.line ?? {}), color: slot(n) },
        marker: { size: 6, color: slot(n) },
        ...(trace.error_y ? { error_y: { ...trace.error_y, color: colour("--ink") } } : {}),
        ...(trace.type === "bar" ? { line: undefined } : {}),
      };
    });
    const { xaxis, yaxis, yaxis2, shapes, ...rest } = spec.layout;
    const layout = {
      ...rest,
      autosize: true,
      margin: { l: 56, r: yaxis2 ? 56 : 16, t: 12, b: 54 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: colour("--ink") },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { font: { family: "system-ui, sans-serif" } },
      xaxis: axis(xaxis),
      yaxis: axis(yaxis),
      ...(yaxis2 ? { yaxis2: axis(yaxis2) } : {}),
      ...(shapes ? { shapes: shapes.map((s) => ({ ...s, line: { color: colour("--quiet"), dash: "dot" } })) } : {}),
    };
    Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
  }

  const all = [...document.querySelectorAll(".plot")];
  // A chart is drawn when it comes near the screen: a long page opens at once.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      entry.target.dataset.drawn = "1";
      draw(entry.target);
    }
  }, { rootMargin: "600px" });
  all.forEach((element) => near.observe(element));
  const again = () => all.filter((e) => e.dataset.drawn).forEach(draw);
  dark.addEventListener("change", again);
  window.addEventListener("beforeprint", () => all.forEach(draw));
})();
