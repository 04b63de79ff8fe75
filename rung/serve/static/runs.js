// Curves of one run or several: drawn when they come near the screen, extended while stages run.
const charts = document.querySelector("#charts");
const controls = document.querySelector("#controls");
const live = document.querySelector("#live");
const runs = JSON.parse(charts.dataset.runs).map((run, index) => ({ ...run, index }));
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 700px)");
const EVERY = 2000;
const POINTS = 500;
const DASHES = ["solid", "dot", "dash"]; // as the swatches of runs.css

// A property itself has a colour for light pages and one for dark ones; an element has the one it shows.
const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;
function colour(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
const axis = () => controls.elements.axis.value;
const axisLabel = () => controls.elements.axis.selectedOptions[0].textContent;

// A panel: its element, its series, lines[run key][name] = {x, y, mean_x, mean}, and by run the
// cursor up to which it has them.
const panels = [];

function addPanel(element) {
  const panel = {
    element,
    plot: element.querySelector(".plot"),
    ...JSON.parse(element.dataset.spec),
    lines: {},
    cursors: {},
    version: 0,
    seen: false,
  };
  panels.push(panel);
  near.observe(element);
  element.querySelector(".values").addEventListener("toggle", () => tabulate(panel));
}

function extend(old, fresh, whole) {
  if (whole || !old) return { mean_x: fresh.x, mean: fresh.y, ...fresh };
  return {
    x: old.x.concat(fresh.x),
    y: old.y.concat(fresh.y),
    num: old.num + fresh.num,
    mean_x: old.mean_x.concat(fresh.mean_x ?? fresh.x),
    mean: old.mean.concat(fresh.mean ?? fresh.y),
  };
}

// What `shown` panels lack. They have the same cursors, so that nothing comes twice.
async function load(shown, { only = runs, again = false } = {}) {
  const names = shown.flatMap((panel) => panel.series.map((series) => series.name));
  if (!names.length || !only.length) return;
  // An answer that was asked for before the panel began anew is of another axis: dropped.
  const versions = shown.map((panel) => (again ? (panel.version += 1) : panel.version));
  const query = new URLSearchParams({ axis: axis(), points: String(POINTS) });
  for (const name of names) query.append("metric", name);
  for (const run of only) {
    const cursor = again ? "" : shown[0].cursors[run.key];
    query.append("run", cursor ? `${run.key}@${cursor}` : run.key);
  }
  const answer = await fetch(`/runs/data?${query}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(`the server says ${answer.status}`);
  const { runs: found } = await answer.json();
  found.forEach((one, index) => {
    const run = only[index];
    run.active = one.status.active;
    if (one.figures > run.figures) grown = true;
    run.figures = one.figures;
    for (const [place, panel] of shown.entries()) {
      if (panel.version !== versions[place]) continue;
      panel.cursors[run.key] = one.cursor;
      const kept = (panel.lines[run.key] ??= {});
      if (one.whole) for (const name of Object.keys(kept)) delete kept[name];
      for (const { name } of panel.series) {
        if (one.lines[name]) kept[name] = extend(kept[name], one.lines[name], one.whole);
      }
    }
  });
  for (const panel of shown) draw(panel);
}

function runningMean(values) {
  const keep = 1 - 1 / Math.max(2, values.length / 50);
  let level = 0;
  let weight = 0;
  return values.map((value) => {
    level = keep * level + value;
    weight = keep * weight + 1;
    return level / weight;
  });
}

// From both sides: a mean of the past alone would lag behind the curve.
function smooth(values) {
  const back = runningMean([...values].reverse()).reverse();
  return runningMean(values).map((value, index) => Number(((value + back[index]) / 2).toPrecision(8)));
}

function traces(panel) {
  const several = runs.length > 1;
  const made = [];
  for (const run of runs) {
    panel.series.forEach((series, index) => {
      const line = panel.lines[run.key]?.[series.name];
      if (!line) return;
      const tint = colour(`--c${(several ? run.index : index) % 8}`);
      const name = several ? (panel.series.length > 1 ? `${run.label}: ${series.label}` : run.label) : series.label;
      const dash = several ? DASHES[index % DASHES.length] : "solid";
      const few = line.x.length < 40;
      const smoothed = controls.elements.smooth.checked && !few;
      const base = { type: "scatter", name, hoverlabel: { namelength: 40 } };
      made.push({
        ...base,
        x: line.x,
        y: line.y,
        mode: few ? "lines+markers" : "lines",
        line: { color: tint, width: smoothed ? 1 : 2, dash },
        marker: { color: tint, size: 6 },
        opacity: smoothed ? 0.3 : 1,
        hoverinfo: smoothed ? "skip" : undefined,
      });
      if (smoothed) made.push({ ...base, x: line.mean_x, y: smooth(line.mean), mode: "lines", line: { color: tint, width: 2.2, dash } });
    });
  }
  return made;
}

function draw(panel) {
  if (!panel.seen) return;
  const data = traces(panel);
  const lines = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true };
  Plotly.react(panel.plot, data, {
    autosize: true,
    uirevision: `${axis()} ${controls.elements.log.checked}`,
    margin: { l: 50, r: 12, t: 10, b: 42 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: narrow.matches ? 11 : 12, color: colour("--ink") },
    showlegend: false, // the table below is the legend
    hovermode: "closest",
    dragmode: narrow.matches ? false : "zoom",
    xaxis: { ...lines, title: { text: axisLabel(), standoff: 6 } },
    yaxis: { ...lines, type: controls.elements.log.checked ? "log" : "linear", rangemode: panel.fromZero ? "tozero" : "normal" },
  }, { responsive: true, displayModeBar: false, doubleClick: "reset" });
  panel.plot.dataset.points = String(data.reduce((sum, trace) => sum + trace.x.length, 0));
  summarise(panel);
  if (panel.element.querySelector(".values").open) tabulate(panel);
}

const show = (value) => (value === undefined ? "" : Number.isInteger(value) || Math.abs(value) >= 1000
  ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : Number(value.toPrecision(4)).toString());

function row(head, cells) {
  const line = document.createElement("tr");
  const first = document.createElement("th");
  first.scope = "row";
  first.textContent = head;
  line.append(first);
  for (const value of cells) {
    const cell = document.createElement("td");
    cell.className = "num";
    cell.textContent = value;
    line.append(cell);
  }
  return line;
}

function series(panel) {
  const several = runs.length > 1;
  const named = (run, label) => (!several ? label : panel.series.length > 1 ? `${run.label}: ${label}` : run.label);
  return runs.flatMap((run) => panel.series.map(({ name, label }, index) => ({
    label: named(run, label),
    swatch: several ? `swatch c${run.index % 8} d${index % 3}` : `swatch c${index % 8} d0`,
    line: panel.lines[run.key]?.[name],
  }))).filter(({ line }) => line);
}

// The table of a live chart follows it; that of a finished one is as the server wrote it.
function summarise(panel) {
  if (!runs.some((run) => run.active)) return;
  const rows = series(panel).map(({ label, swatch, line: { y, num } }) => {
    const made = row(label, [
      y[0], y.at(-1), y.reduce((a, b) => Math.min(a, b)), y.reduce((a, b) => Math.max(a, b)), num].map(show));
    made.firstElementChild.className = swatch;
    return made;
  });
  panel.element.querySelector(".summary tbody").replaceChildren(...rows);
}

// About twenty values of each curve, for who does not see it.
function tabulate(panel) {
  const table = document.createElement("table");
  table.createTHead().append(row(axisLabel(), []));
  const body = table.createTBody();
  const all = series(panel);
  const heads = table.tHead.rows[0];
  for (const { label } of all) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.className = "num";
    cell.textContent = label;
    heads.append(cell);
  }
  heads.firstElementChild.scope = "col";
  const places = new Map();
  all.forEach(({ line }, column) => {
    const stride = Math.max(1, Math.ceil(line.mean_x.length / 20));
    line.mean_x.forEach((x, index) => {
      if (index % stride && index !== line.mean_x.length - 1) return;
      if (!places.has(x)) places.set(x, Array(all.length).fill(""));
      places.get(x)[column] = show(line.mean[index]);
    });
  });
  for (const x of [...places.keys()].sort((a, b) => a - b)) body.append(row(show(x), places.get(x)));
  panel.element.querySelector(".values .scroll").replaceChildren(table);
}

async function refreshTexts() {
  if (!document.querySelector("[data-live]")) return;
  const answer = await fetch(`/runs/${runs[0].key}/texts`, { cache: "no-store" });
  if (!answer.ok) throw new Error(`the server says ${answer.status}`);
  // Our own template, in which every value is escaped.
  const fresh = document.createElement("div");
  fresh.innerHTML = await answer.text();
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const here = document.getElementById(part.id);
    if (here.contains(document.activeElement) || here.innerHTML === part.innerHTML) continue;
    const before = here.querySelector(".said");
    const above = before && before.scrollTop + before.clientHeight < before.scrollHeight - 8 ? before.scrollTop : null;
    here.replaceChildren(...part.childNodes);
    const after = here.querySelector(".said");
    if (after) after.scrollTop = above ?? after.scrollHeight;
  }
}

// A long look at a live run gathers points: beyond this they are fetched anew, thinned.
const heavy = () => panels.some((panel) => Object.values(panel.lines).some((by) => Object.values(by).some((line) => line.x.length > 8 * POINTS)));

// Figures that were not logged yet when the page was made come as panels of a fresh page.
let grown = false;
async function addNewPanels() {
  grown = false;
  const answer = await fetch(location.href, { cache: "no-store" });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const titles = new Set(panels.map((panel) => panel.title));
  for (const [index, box] of [...page.querySelectorAll("#charts > .panels, #charts > .more > .panels")].entries()) {
    const here = charts.querySelectorAll(":scope > .panels, :scope > .more > .panels")[index];
    if (!here) {
      charts.append(page.querySelector("#charts > .more"));
      charts.querySelectorAll(":scope > .more .panel").forEach(addPanel);
      continue;
    }
    for (const element of [...box.querySelectorAll(".panel")]) {
      if (titles.has(JSON.parse(element.dataset.spec).title)) continue;
      here.append(element);
      addPanel(element);
    }
  }
}

let failures = 0;
async function tick() {
  const active = runs.filter((run) => run.active);
  if (!document.hidden && active.length) {
    try {
      const again = heavy();
      await Promise.all([...groups(active, again).map((group) => load(group, { only: active, again })), refreshTexts()]);
      if (grown || !panels.length) await addNewPanels();
      failures = 0;
      const still = runs.filter((run) => run.active).length;
      live.textContent = still ? "Live" : "Done";
      // A stage that has ended has an artefact, and one that just began has curves: a new page.
      if (!still) return void setTimeout(() => location.reload(), 1500);
    } catch (error) {
      failures += 1;
      live.textContent = `No answer (${error.message}); trying again.`;
    }
  }
  if (runs.some((run) => run.active)) setTimeout(tick, Math.min(30_000, EVERY * 2 ** failures));
}

// Panels are first loaded as they come near; those that stand at the same rows go on as one.
function groups(active, again) {
  const found = new Map();
  for (const panel of seen()) {
    const at = again ? "" : active.map((run) => panel.cursors[run.key]).join(" ");
    found.set(at, [...(found.get(at) ?? []), panel]);
  }
  return [...found.values()];
}

function failed(error) {
  live.textContent = `No curves: ${error.message}.`;
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    const panel = panels.find((one) => one.element === entry.target);
    panel.seen = true;
    load([panel]).catch(failed);
  }
}, { rootMargin: "500px" });
charts.querySelectorAll(".panel").forEach(addPanel);
const seen = () => panels.filter((panel) => panel.seen);
controls.addEventListener("submit", (event) => event.preventDefault());
controls.addEventListener("change", (event) => {
  if (event.target.name === "axis") for (const panel of seen()) load([panel], { again: true }).catch(failed);
  else for (const panel of seen()) draw(panel);
});
const redraw = () => seen().forEach(draw);
dark.addEventListener("change", redraw);
document.addEventListener("rung-theme", redraw);
narrow.addEventListener("change", redraw);
const said = document.querySelector(".said");
if (said) said.scrollTop = said.scrollHeight;
if (runs.some((run) => run.active)) {
  live.textContent = "Live";
  setTimeout(tick, EVERY);
}
