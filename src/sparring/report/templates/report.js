"use strict";
(() => {
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const report = read("facts"), sheets = read("sheets");
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// -- elements

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}
function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}
const say = (text) => { find("#said").textContent = text; };

// -- numbers

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const points = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}`;
const count = (number) => number.toLocaleString("en-US");
const short = (number) => (number === null || number === undefined ? "–" : String(Number(number.toPrecision(3))).replace("-", "−"));
const ranged = (a) => `${percent(a.accuracy)} [${(100 * a.low).toFixed(1)}, ${(100 * a.high).toFixed(1)}]`;

function ticks(low, high, wanted = 5) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toFixed(10)));
  return found;
}

// -- marks: a shape for each series, so that none depends on its colour

const SHAPES = ["circle", "square", "up", "diamond", "down", "cross", "plus"];
function mark(x, y, series, hollow = false, size = 5) {
  const shape = hollow ? "circle" : SHAPES[series % 7], look = `mark s${series % 7}${hollow ? " hollow" : ""}`;
  if (shape === "circle") return draw("circle", { cx: x, cy: y, r: size, class: look });
  const s = size * 1.15;
  const path = {
    square: `M${x - size} ${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
    up: `M${x} ${y - s}L${x + s} ${y + s * 0.8}H${x - s}z`,
    diamond: `M${x} ${y - s * 1.2}L${x + s * 1.2} ${y}L${x} ${y + s * 1.2}L${x - s * 1.2} ${y}z`,
    down: `M${x} ${y + s}L${x + s} ${y - s * 0.8}H${x - s}z`,
    cross: `M${x - s} ${y - s}L${x + s} ${y + s}M${x - s} ${y + s}L${x + s} ${y - s}`,
    plus: `M${x - s} ${y}H${x + s}M${x} ${y - s}V${y + s}`,
  }[shape];
  return draw("path", { d: path, class: look });
}
function legend(entries) {
  return make("div", { class: "legend", "aria-hidden": "true" }, ...entries.map(([name, series, hollow]) =>
    make("span", {}, draw("svg", { viewBox: "0 0 14 14" }, mark(7, 7, series, hollow, 4.5)), name)));
}
function canvas(width, height, label, ...children) {
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, ...children);
}

// -- rows of intervals

function intervals(host, width, rows, { domain = [0, 1], format = (x) => `${Math.round(100 * x)} %`, zero = null } = {}) {
  const narrow = width < 560, left = narrow ? 0 : Math.min(220, width * 0.32), right = narrow ? 8 : 172;
  const pitch = narrow ? 46 : 32, top = 6, bottom = 26, height = top + rows.length * pitch + bottom;
  const x = (value) => left + 8 + ((value - domain[0]) / (domain[1] - domain[0])) * (width - left - right - 16);
  const parts = ticks(...domain, narrow ? 4 : 5).flatMap((at) => [
    draw("line", { x1: x(at), x2: x(at), y1: top, y2: height - bottom, class: "grid" }),
    draw("text", { x: x(at), y: height - 8, "text-anchor": "middle", class: "quiet" }, format(at)),
  ]);
  if (zero !== null) parts.push(draw("line", { x1: x(zero), x2: x(zero), y1: top, y2: height - bottom, class: "zero" }));
  rows.forEach((row, i) => {
    const y = top + i * pitch + (narrow ? 32 : pitch / 2), labelled = narrow ? y - 16 : y + 4.5;
    const indent = row.indent ? 14 : 0, room = narrow ? width * 0.55 : left - indent - 10;
    parts.push(draw("text", { x: indent, y: labelled, class: row.indent ? "quiet" : "" }, fitted(row.label, room)));
    if (row.text) parts.push(draw("text", { x: width, y: labelled, "text-anchor": "end", class: "quiet" }, row.text));
    for (const each of row.marks) {
      const clip = (value) => Math.min(domain[1], Math.max(domain[0], value));
      const inside = each.value >= domain[0] && each.value <= domain[1];
      parts.push(draw("line", { x1: x(clip(each.low)), x2: x(clip(each.high)), y1: y, y2: y, class: `bar s${each.series}` }));
      for (const [end, by] of [[each.low, 7], [each.high, -7]]) {
        if (clip(end) !== end) parts.push(draw("path", { d: `M${x(clip(end)) + by} ${y - 5}l${-by} 5l${by} 5`, fill: "none", class: `bar s${each.series}` }));
      }
      if (inside) parts.push(mark(x(each.value), y, each.series, each.hollow));
    }
  });
  host.append(canvas(width, height, host.dataset.label, ...parts));
}
const LETTER = 7.1;
function fitted(text, room) {
  const most = Math.max(4, Math.floor(room / LETTER));
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
const marked = (a, series, hollow = false) => ({ value: a.accuracy ?? a.value, low: a.low, high: a.high, series, hollow });

// -- lines

function lines(host, width, series, options) {
  const { xLabel, yLabel, height = 300, domain = [0, 1], dots = [], percents = true, labels = true, rule = null, xTo = null } = options;
  const longest = labels ? Math.max(...series.map((each) => each.name.length)) * LETTER + 14 : 12;
  const margin = { left: 46, right: Math.min(longest, width * 0.36), top: 24, bottom: 42 };
  const every = series.flatMap((each) => each.points);
  const to = xTo ?? Math.max(...every.map((p) => p[0]), ...dots.map((d) => d.x)), from = Math.min(0, ...every.map((p) => p[0]));
  const x = (value) => margin.left + ((value - from) / (to - from || 1)) * (width - margin.left - margin.right);
  const y = (value) => height - margin.bottom - ((value - domain[0]) / (domain[1] - domain[0] || 1)) * (height - margin.top - margin.bottom);
  const parts = [];
  for (const at of ticks(...domain, height < 200 ? 2 : 5)) {
    parts.push(draw("line", { x1: margin.left, x2: width - margin.right, y1: y(at), y2: y(at), class: "grid" }));
    parts.push(draw("text", { x: margin.left - 8, y: y(at) + 4, "text-anchor": "end", class: "quiet" }, percents ? Math.round(100 * at) : short(at)));
  }
  for (const at of ticks(from, to, Math.max(2, Math.floor(width / 130)))) {
    parts.push(draw("text", { x: x(at), y: height - margin.bottom + 18, "text-anchor": "middle", class: "quiet" }, short(at)));
  }
  if (xLabel) parts.push(draw("text", { x: (margin.left + width - margin.right) / 2, y: height - 4, "text-anchor": "middle", class: "quiet" }, xLabel));
  if (yLabel) parts.push(draw("text", { x: 0, y: 11, class: "quiet" }, yLabel));
  if (rule) {
    parts.push(draw("line", { x1: x(rule.x), x2: x(rule.x), y1: margin.top, y2: height - margin.bottom, class: "zero" }));
    parts.push(draw("text", { x: x(rule.x) - 5, y: margin.top + 10, class: "quiet halo", "text-anchor": "end" }, rule.text));
  }
  const path = (all) => all.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
  series.forEach((each, i) => {
    const s = each.series ?? i, banded = each.points.filter((p) => p.length > 2);
    if (banded.length) parts.push(draw("path", { class: `band s${s}`, d: `${path(banded.map((p) => [p[0], p[3]]))}L${path(banded.map((p) => [p[0], p[2]]).reverse()).slice(1)}z` }));
    parts.push(draw("path", { class: `line s${s}`, d: path(each.points) }));
  });
  for (const dot of dots) {
    parts.push(draw("line", { x1: x(dot.x), x2: x(dot.x), y1: y(dot.low), y2: y(dot.high), class: `bar s${dot.series}` }));
    parts.push(mark(x(dot.x), y(dot.y), dot.series));
    parts.push(draw("text", { x: x(dot.x) + 10, y: y(dot.y) + (dot.shift ?? 4), class: "halo" }, dot.name));
  }
  if (labels) parts.push(...endLabels(series, width - margin.right + 8, y, margin.right - 8, height - margin.bottom + 4));
  host.append(canvas(width, height, host.dataset.label, ...parts));
}
function endLabels(series, x, y, room, bottom) {
  const wanted = series.map((each) => ({ name: each.name, y: y(each.points.at(-1)[1]) + 4 })).sort((a, b) => a.y - b.y);
  wanted.forEach((each, i) => { if (i) each.y = Math.max(each.y, wanted[i - 1].y + 15); });
  wanted.reverse().forEach((each, i) => { each.y = Math.min(each.y, i ? wanted[i - 1].y - 15 : bottom); });
  return wanted.map((each) => draw("text", { x, y: each.y }, fitted(each.name, room)));
}

// -- the charts of the panels

const CHARTS = {
  scale(host, width) {
    const { threats, clean } = report.verdict;
    const rows = [...threats.map((each, i) => [each.threat, each.accuracy, 0, false]), ["clean", clean, 6, true]];
    const height = 62, x = (value) => 8 + value * (width - 16), y = 26;
    const parts = [draw("rect", { x: 8, y: y - 2, width: width - 16, height: 4, rx: 2, class: "track" })];
    for (const at of [0, 0.25, 0.5, 0.75, 1]) parts.push(draw("text", { x: x(at), y: 58, "text-anchor": at === 0 ? "start" : at === 1 ? "end" : "middle", class: "quiet" }, percent(at, 0)));
    let last = -99;
    for (const [name, each, series, hollow] of rows) {
      parts.push(draw("line", { x1: x(each.low), x2: x(each.high), y1: y, y2: y, class: `bar s${series}`, "stroke-width": 6 }));
      parts.push(mark(x(each.accuracy), y, series, hollow, 6));
      const near = Math.abs(x(each.accuracy) - last) < 60, end = each.accuracy > 0.9, start = each.accuracy < 0.1;
      parts.push(draw("text", { x: x(each.accuracy) + (end ? 7 : start ? -7 : 0), y: near ? 45 : 12, "text-anchor": end ? "end" : start ? "start" : "middle", class: "halo" }, name));
      last = x(each.accuracy);
    }
    host.append(canvas(width, height, host.dataset.label, ...parts));
  },
  attacks(host, width) {
    intervals(host, width, report.attacks.map((row) => ({
      label: row.label, indent: row.stage, text: ranged(row.accuracy), marks: [marked(row.accuracy, row.stage || row.name === "clean" ? 6 : 0, row.name === "clean")],
    })));
  },
  waterfall(host, width) {
    const { steps } = report.waterfall, total = steps[0].lost + steps[0].left, narrow = width < 560;
    const left = narrow ? 0 : Math.min(220, width * 0.32), pitch = narrow ? 46 : 32, right = narrow ? 0 : 150;
    const x = (number) => left + (number / total) * (width - left - right);
    const parts = [], rows = [...steps, { name: "robust", lost: 0, left: steps.at(-1).left, end: true }];
    rows.forEach((step, i) => {
      const top = i * pitch + (narrow ? 22 : 6), high = narrow ? 14 : 20, text = narrow ? top - 6 : top + 15;
      const [a, b] = step.end ? [0, step.left] : [step.left, step.left + step.lost];
      parts.push(draw("rect", { x: left, y: top, width: width - left - right, height: high, class: "track", rx: 2 }));
      parts.push(draw("rect", { x: x(a), y: top, width: Math.max(b > a ? 1.5 : 0, x(b) - x(a)), height: high, class: step.end ? "left" : "lost", rx: 2 }));
      parts.push(draw("text", { x: 0, y: text }, fitted(step.name, narrow ? width * 0.6 : left - 10)));
      parts.push(draw("text", { x: width, y: text, "text-anchor": "end", class: "quiet" }, step.end ? `${count(step.left)} of ${count(total)}` : `${step.lost ? `−${count(step.lost)}` : "none"}, ${count(step.left)} left`));
    });
    host.append(canvas(width, rows.length * pitch + 4, host.dataset.label, ...parts));
  },
  curve(host, width) {
    const others = Object.entries(report.compare?.curves ?? {}).slice(0, 7), own = report.verdict.weights;
    const held = others.length > 1 ? others : [[own, report.curve]];
    const series = held.map(([name, curve]) => ({ name, points: curve.eps.map((eps, i) => [eps, curve.accuracy[i].accuracy, curve.accuracy[i].low, curve.accuracy[i].high]) }));
    const dots = report.curve.points.map((point, i) => ({ x: point.eps, y: point.accuracy.accuracy, low: point.accuracy.low, high: point.accuracy.high, name: point.name, series: (i + 1) % 7 }));
    dots.sort((a, b) => b.y - a.y).forEach((dot, i) => { const before = dots[i - 1]; dot.shift = before && before.x === dot.x && Math.abs(before.y - dot.y) < 0.07 ? (before.shift ?? 4) + 14 - (before.y - dot.y) * 230 : 4; });
    lines(host, width, series, { xLabel: `eps (${report.curve.norm})`, yLabel: "accuracy, %", dots, height: 340 });
  },
  classes(host, width) {
    host.append(legend([["clean", 6, true], ["robust", 0, false]]));
    intervals(host, width, report.classes.rows.map((row) => ({
      label: row.name, text: ranged(row.robust), marks: [marked(row.clean, 6, true), marked(row.robust, 0)],
    })));
  },
  confusion(host) {
    const { counts, none } = report.confusion, names = report.examples.classes, lost = none.some((each) => each > 0);
    const most = Math.max(1, ...counts.flatMap((row, i) => row.filter((_, j) => j !== i)));
    const head = [...names, ...(lost ? ["no class"] : [])];
    const cell = (n, i, j) => {
      const share = Math.round(Math.min(1, n / (i === j ? Math.max(...counts.map((row, k) => row[k])) || 1 : most)) * 42);
      const look = i === j ? `background: color-mix(in srgb, var(--accent) ${share}%, transparent)` : `background: color-mix(in srgb, var(--s1) ${share}%, transparent)`;
      return make("td", { style: look, class: i === j ? "right" : null }, n || i === j ? String(n) : "");
    };
    const rows = counts.map((row, i) => make("tr", {}, make("th", { scope: "row", dir: "auto" }, names[i]), ...row.map((n, j) => cell(n, i, j)), ...(lost ? [cell(none[i], i, -1)] : [])));
    host.append(make("p", { class: "aside" }, "Rows are true classes, columns what the model takes them for. Framed and blue: images that are still right; orange: the others."));
    host.append(make("div", { class: "table", tabindex: "0", role: "region", "aria-label": host.dataset.label }, make("table", { class: "matrix" },
      make("thead", {}, make("tr", {}, make("td"), ...head.map((name) => make("th", { scope: "col" }, make("span", { dir: "auto" }, name))))),
      make("tbody", {}, ...rows))));
  },
  training(host, width) {
    const { held_out: rows, best_epoch: best } = report.training;
    if (rows.length < 2) return void host.append(make("p", { class: "missing" }, "Nothing was held out, or only one epoch was trained: there is no curve."));
    const series = ["robust", "clean"].map((name, i) => ({ name, series: i ? 6 : 0, points: rows.map((row) => [row.epoch, row[name]]) }));
    lines(host, width, series, { xLabel: "epoch", yLabel: "held-out accuracy, %", rule: best === null ? null : { x: best, text: `best: epoch ${short(best)}` } });
  },
  terms(host, width) {
    const series = Object.entries(report.training.terms).slice(0, 7).map(([name, points]) => ({ name, points }));
    if (series.length) lines(host, width, series, { xLabel: "epoch", yLabel: "terms of the loss", domain: range(series), percents: false, height: 220 });
  },
  rate(host, width) {
    const points = report.training.lr, series = [{ name: "", points, series: 6 }];
    if (points.length) lines(host, width, series, { xLabel: "epoch", yLabel: "learning rate", domain: range(series), percents: false, height: 220, labels: false });
  },
  memorised(host, width) {
    const { epochs, robust, examples } = report.training.memorised;
    const series = Object.entries(robust).map(([name, shares], i) => ({ name: `${name} (${count(examples[name])})`, series: i, points: epochs.map((epoch, j) => [epoch, shares[j]]) }));
    lines(host, width, series, { xLabel: "epoch", yLabel: "right under attack, %", height: 240 });
  },
  compare(host, width) {
    const { attacks, rows } = report.compare;
    for (const name of attacks) {
      host.append(make("h3", {}, name === "clean" ? "clean images" : name));
      const part = make("div", { "data-label": `${host.dataset.label}: ${name}` });
      host.append(part);
      intervals(part, width, rows.map((row) => ({ label: row.name, text: ranged(row[name]), marks: [marked(row[name], name === "clean" ? 6 : 0, name === "clean")] })));
    }
  },
  arms(host, width) {
    const arms = Object.entries(report.study.arms).map(([name, arm]) => [name, arm.accuracy.last]).sort((a, b) => b[1].worst.value - a[1].worst.value);
    host.append(legend([["clean", 6, true], ["worst of all attacks", 0, false]]));
    intervals(host, width, arms.map(([name, found]) => ({ label: name, text: ranged({ accuracy: found.worst.value, ...found.worst }), marks: [marked(found.clean, 6, true), marked(found.worst, 0)] })));
  },
  differences(host, width) {
    const { baseline } = report.study;
    const arms = Object.entries(report.study.arms).filter(([name, arm]) => name !== baseline && arm.difference.last?.worst).map(([name, arm]) => [name, arm.difference.last.worst]).sort((a, b) => b[1].value - a[1].value);
    if (!arms.length) return;
    const sizes = arms.map(([, d]) => Math.max(Math.abs(d.low), Math.abs(d.high))).sort((a, b) => a - b);
    const most = Math.max(0.02, Math.min(sizes.at(-1), 2 * sizes[Math.floor(sizes.length * 0.7)])) * 1.05;
    intervals(host, width, arms.map(([name, d]) => ({ label: name, text: `${points(d.value)} [${points(d.low)}, ${points(d.high)}]`, marks: [marked(d, 0)] })), { domain: [-most, most], format: (at) => (at ? points(at).replace(".0", "") : "0"), zero: 0 });
  },
  multiples(host) {
    const { curves, baseline } = report.study, grid = make("div", { class: "multiples" });
    const every = Object.values(curves), top = Math.max(0.05, ...every.flatMap((each) => each.held_out)), end = Math.max(...every.flatMap((each) => each.passes));
    host.append(legend([["the training", 0, false]]), grid);
    for (const [name, curve] of Object.entries(curves)) {
      const own = (each) => each.passes.map((passes, i) => [passes, each.held_out[i]]);
      const part = make("div", { "data-label": `Held-out robust accuracy of ${name}` }, make("p", { dir: "auto" }, name));
      grid.append(part);
      const series = [...(curves[baseline] && name !== baseline ? [{ name: baseline, series: 1, points: own(curves[baseline]) }] : []), { name, series: 0, points: own(curve) }];
      lines(part, Math.max(160, part.clientWidth), series, { height: 130, domain: [0, top], labels: false, xTo: end });
    }
    host.append(make("p", { class: "aside" }, `Across: million passes, 0 to ${short(end)}. Up: held-out robust accuracy, 0 to ${percent(top, 0)}. Dashed: ${baseline}.`));
  },
};
function range(series) {
  const values = series.flatMap((each) => each.points.map((p) => p[1]));
  return [Math.min(0, ...values), Math.max(...values) * 1.02 || 1];
}
function drawChart(host) {
  const width = Math.round(host.clientWidth);
  if (!width || host.dataset.width === String(width)) return;
  host.dataset.width = width;
  host.replaceChildren();
  CHARTS[host.dataset.chart](host, width);
}
const watcher = new ResizeObserver((entries) => entries.forEach((entry) => drawChart(entry.target)));
all("[data-chart]").forEach((host) => { drawChart(host); watcher.observe(host); });

// -- tables that can be sorted

const sortKey = (row, column) => {
  const cell = row.cells[column];
  if (!cell) return ""; // covered by a cell that spans columns
  const held = find("data", cell);
  return held ? Number(held.value) : cell.textContent.trim().toLowerCase();
};
for (const table of all("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "descending" ? "ascending" : head.hasAttribute("aria-sort") || !head.classList.contains("n") ? (head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending") : "descending";
      [...table.tHead.rows[0].cells].forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row, column), row]);
      rows.sort(([a], [b]) => (a === b ? 0 : a === "" ? 1 : b === "" ? -1 : a < b === (order === "ascending") ? -1 : 1));
      table.tBodies[0].append(...rows.map(([, row]) => row));
      say(`sorted by ${button.textContent}, ${order}`);
    });
  });
}

// -- commands that can be copied

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const held = make("textarea", { class: "unseen" });
    held.value = text;
    (find("dialog[open]") ?? document.body).append(held);
    held.select();
    document.execCommand("copy");
    held.remove();
  }
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await copy(button.dataset.copy);
  button.classList.add("copied");
  say("copied");
  setTimeout(() => button.classList.remove("copied"), 1500);
});

// -- the panel that is being read

const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
const reading = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((link) => link.removeAttribute("aria-current"));
    const link = links.get(entry.target.id);
    link.setAttribute("aria-current", "true");
    find("nav ul").scrollLeft = link.offsetLeft - 40; // on narrow screens the list of panels scrolls sideways
  }
}, { rootMargin: "-20% 0px -70% 0px" });
links.forEach((_, id) => { const section = document.getElementById(id); if (section) reading.observe(section); });

// -- the example browser

if (report.examples) browse(report.examples);
function browse({ adversary, fates, columns, classes, pictured, again }) {
  const PAGE = 12, form = find(".filters"), cards = find("#cards"), dialog = find("#example");
  const place = new Map((pictured?.row ?? []).map((row, i) => [row, i]));
  const className = (k) => (k < 0 ? "no class" : classes[k] ?? String(k));
  const fateName = (code) => (fates[code] === "" ? "robust" : fates[code] === "clean" ? "wrong without attack" : `broken by ${fates[code]}`);
  const at = (name, row) => columns[name]?.[row] ?? null;
  const smallest = columns.distance ? "distance" : columns.norm ? "norm" : null;
  const confidence = (row) => (place.has(row) ? pictured.confidence[place.get(row)] : null);
  const SORTS = {
    number: ["number", (row) => at("index", row)],
    ...(columns.margin && { margin: ["margin under attack, lowest first", (row) => at("margin", row)] }),
    ...(smallest && { eps: ["smallest eps first", (row) => at(smallest, row)] }),
    ...(pictured && { confidence: ["confidence under attack, highest first", (row) => (confidence(row) === null ? null : -confidence(row))] }),
  };
  fates.forEach((_, code) => form.fate.append(make("option", { value: code }, fateName(code))));
  classes.forEach((name, k) => form.label.append(make("option", { value: k }, name)));
  Object.entries(SORTS).forEach(([key, [name]]) => form.sort.append(make("option", { value: key }, name)));
  let rows = [], page = 0, opened = 0;
  let sheetImages = {};

  function choose() {
    const [fate, label, only] = [form.fate.value, form.label.value, form.pictured.checked];
    const key = SORTS[form.sort.value][1];
    rows = columns.label.map((_, row) => row).filter((row) =>
      (fate === "" || at("fate", row) === Number(fate)) && (label === "" || at("label", row) === Number(label)) && (!only || place.has(row)));
    const keys = new Map(rows.map((row) => [row, key(row) ?? Infinity]));
    rows.sort((a, b) => (keys.get(a) === keys.get(b) ? a - b : keys.get(a) - keys.get(b)));
    page = 0;
    show();
  }
  function show() {
    const pages = Math.max(1, Math.ceil(rows.length / PAGE)), with_ = place.size;
    page = Math.min(Math.max(page, 0), pages - 1);
    find("#example-count").textContent = `${count(rows.length)} of ${count(columns.label.length)} examples under ${adversary}; ${count(with_)} have pictures.`;
    find("#page-number").textContent = `page ${page + 1} of ${pages}`;
    find("[data-page='-1']").disabled = page === 0;
    find("[data-page='1']").disabled = page === pages - 1;
    cards.replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((row, i) => make("li", {}, card(row, page * PAGE + i))));
  }
  const seen = (row) => (at("clean", row) === null ? "" : className(at("predicted", row) ?? at("clean", row)));
  function title(row) {
    const truth = className(at("label", row)), taken = seen(row);
    return taken && taken !== truth ? `${truth} → ${taken}` : truth;
  }
  function card(row, position) {
    const facts = [fateName(at("fate", row)),
      form.sort.value === "eps" ? `eps ${short(at(smallest, row))}` : at("margin", row) === null ? "" : `margin ${short(at("margin", row))}`].filter(Boolean).join(" · ");
    const button = make("button", { type: "button", class: "card", "data-row": row }, thumbs(row), make("span", { class: "title", dir: "auto" }, title(row)), make("span", { class: "quiet" }, `no. ${at("index", row)}, ${facts}`));
    button.addEventListener("click", () => open(position));
    return button;
  }
  function thumbs(row) {
    if (!place.has(row)) return null;
    const broken = fates[at("fate", row)] !== "" && fates[at("fate", row)] !== "clean";
    const parts = broken ? ["clean", "perturbation", "adversarial"].map((kind) => image(row, kind)) : [image(row, "clean"), make("span", { class: "none" }, fates[at("fate", row)] === "" ? "no attack broke it" : "no attack needed")];
    return make("span", { class: "thumbs" }, ...parts);
  }
  function image(row, kind) {
    const { width, height } = sheets, drawn = make("canvas", { width, height, role: "img", "aria-label": `${kind} image` });
    const i = place.get(row), source = sheetImages[kind];
    const paint = () => drawn.getContext("2d").drawImage(source, (i % sheets.columns) * width, Math.floor(i / sheets.columns) * height, width, height, 0, 0, width, height);
    if (source.complete) paint(); else source.addEventListener("load", paint, { once: true });
    return drawn;
  }
  function open(position) {
    opened = position;
    const row = rows[position], broken = fates[at("fate", row)] !== "" && fates[at("fate", row)] !== "clean", i = place.get(row);
    const sure = (list) => (i === undefined || list[i] === null ? "" : `, ${percent(list[i])} sure`);
    const figure = (kind, text) => make("figure", {}, image(row, kind), make("figcaption", {}, text));
    const clean = `clean: ${className(at("clean", row) ?? at("label", row))}${pictured ? sure(pictured.clean_confidence) : ""}`;
    const pictures = i === undefined ? null : make("div", { class: "large" }, figure("clean", clean), ...(broken ? [
      figure("perturbation", `perturbation, scaled: the largest change is ${short(sheets.largest[i])}`),
      figure("adversarial", `adversarial: ${seen(row)}${sure(pictured.confidence)}`)] : []));
    const facts = [["true class", className(at("label", row))], ["clean prediction", at("clean", row) === null ? null : className(at("clean", row))], ["under attack", broken ? seen(row) : null], ["fate", fateName(at("fate", row))],
      ["clean margin", at("clean_margin", row)], ["margin under attack", at("margin", row)], ["eps that broke it", at("norm", row)], ["smallest eps found", at("distance", row)]];
    const list = make("dl", { class: "facts" }, ...facts.filter(([, value]) => value !== null).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, typeof value === "number" ? short(value) : value))));
    const command = again && again.replace("{index}", at("index", row));
    const step = (by, name, key) => {
      const button = make("button", { type: "button", title: key }, name);
      button.disabled = !rows[opened + by];
      button.addEventListener("click", () => open(opened + by));
      return button;
    };
    const close = make("button", { type: "button" }, "Close");
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(...[make("h3", { id: "example-title", dir: "auto", tabindex: "-1" }, `No. ${at("index", row)}: ${title(row)}`), pictures, list,
      command ? make("p", {}, make("button", { type: "button", class: "command", "data-copy": command }, make("code", {}, command))) : make("p", { class: "missing" }, "No command is recorded by which this example could be evaluated again."),
      make("div", { class: "buttons" }, step(-1, "Previous", "left arrow"), step(1, "Next", "right arrow"), close)].filter(Boolean));
    if (!dialog.open) dialog.showModal();
    find("#example-title").focus();
  }
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && rows[opened + by]) open(opened + by);
  });
  dialog.addEventListener("close", () => {
    page = Math.floor(opened / PAGE);
    show();
    find(`[data-row='${rows[opened]}']`, cards)?.focus();
  });
  form.addEventListener("change", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  all("[data-page]").forEach((button) => button.addEventListener("click", () => { page += Number(button.dataset.page); show(); }));
  if (sheets) for (const kind of ["clean", "perturbation", "adversarial"]) { sheetImages[kind] = new Image(); sheetImages[kind].src = sheets[kind]; }
  choose();
}
})();
