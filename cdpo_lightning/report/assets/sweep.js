// Draws the page over many runs from its data. Whatever comes from a run is set as text, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7a7a7a", "#8a6d00"];
const SHAPES = ["circle", "square", "triangle", "diamond", "down", "plus", "cross", "bar"];
const short = key => key.split(".").pop();
const format = (value, digits = 3) => value === null || value === undefined || Number.isNaN(value) ? "–"
  : typeof value === "number" ? String(+value.toFixed(digits)).replace(/^-/, "−") : String(value);
const node = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
const svg = (name, attributes = {}, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const wide = matchMedia("(min-width:40rem)");

// The filters and the colouring are kept in the address, so that they survive a reload of the page.
const state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
const remember = () => history.replaceState(null, "", "#" + new URLSearchParams(Object.entries(state).filter(([, v]) => v !== "")));
const value = (point, key) => key === "method" ? data.names[point.who] : data.runs[point.run].values[data.keys.indexOf(key)];
const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
const choices = key => [...new Set(data.points.filter(p => p.main).map(p => value(p, key)))].sort(order);
const DIMENSIONS = ["method", ...data.keys];
const VARYING = DIMENSIONS.filter(key => choices(key).length > 1);
const few = key => { const n = choices(key).length; return n > 1 && n <= 12; };
const byDefault = few("method") ? "method" : VARYING.find(few) || "method";

function controls() {
  const form = $("controls");
  for (const key of VARYING.filter(key => choices(key).length <= 60)) {
    const select = node("select", {name: key, "aria-label": short(key)}, node("option", {value: ""}, "all"));
    for (const choice of choices(key)) select.append(node("option", {value: String(choice)}, format(choice, 6)));
    form.append(node("label", {}, short(key), select));
  }
  const met = node("select", {name: "met"}, node("option", {value: ""}, "all"));
  for (const word of ["yes", "undecided", "no"]) met.append(node("option", {value: word}, word));
  form.append(node("label", {}, "limit met", met));
  const colour = node("select", {name: "colour"});
  for (const key of DIMENSIONS.filter(key => VARYING.includes(key) || key === byDefault)) colour.append(node("option", {value: key}, short(key)));
  form.append(node("label", {}, "colour and shape", colour));
  form.append(node("label", {}, "find", node("input", {type: "search", name: "find", placeholder: "in name or values"})));
  if (data.points.some(p => !p.main))
    form.append(node("label", {class: "check"}, node("input", {type: "checkbox", name: "others"}), "baselines and reference"));
  if (state.others === undefined) state.others = data.runs.length <= 40 ? "1" : "0"; // "0" and not "", which `remember` leaves out
  state.colour ||= byDefault;
  for (const field of form.elements) field.type === "checkbox" ? field.checked = state[field.name] === "1" : field.value = state[field.name] ?? "";
  form.addEventListener("input", () => {
    for (const field of form.elements) state[field.name] = field.type === "checkbox" ? (field.checked ? "1" : "0") : field.value;
    remember(); draw();
  });
  form.addEventListener("submit", event => event.preventDefault());
}

function visible() {
  const find = (state.find || "").toLowerCase();
  return data.points.filter(point => (point.main || state.others === "1")
    && VARYING.every(key => !state[key] || (key === "method" && !point.main) || String(value(point, key)) === state[key])
    && (!state.met || point.feasible === state.met)
    && (!find || [data.runs[point.run].name, data.names[point.who], ...data.runs[point.run].values].join(" ").toLowerCase().includes(find)));
}

function look(point) {
  const all = choices(state.colour), at = all.indexOf(value(point, state.colour));
  const own = state.colour === "method" ? data.colours[point.who] : null;
  // Where runs are coloured by another key a baseline is grey, or its colour would be read as a value of that key.
  if (!point.main) return {colour: state.colour === "method" ? data.colours[point.who] : "#7a7a7a", shape: point.who === data.reference ? "plus" : "cross"};
  const spread = all.length > PALETTE.length && all.every(x => typeof x === "number");
  return {colour: spread ? `hsl(${250 - 210 * at / (all.length - 1)} 75% 42%)` : own || PALETTE[at % PALETTE.length], shape: SHAPES[at % SHAPES.length]};
}

function marker(shape, x, y, r) {
  const d = {
    circle: `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`,
    square: `M${x - r * .85},${y - r * .85}h${1.7 * r}v${1.7 * r}h${-1.7 * r}z`,
    triangle: `M${x},${y - r * 1.1}l${r * 1.1},${r * 2}h${-2.2 * r}z`, down: `M${x},${y + r * 1.1}l${r * 1.1},${-r * 2}h${-2.2 * r}z`,
    diamond: `M${x},${y - r * 1.3}l${r * 1.1},${r * 1.3}l${-r * 1.1},${r * 1.3}l${-r * 1.1},${-r * 1.3}z`,
    plus: `M${x - r},${y}h${2 * r}M${x},${y - r}v${2 * r}`, cross: `M${x - r * .8},${y - r * .8}l${1.6 * r},${1.6 * r}m0,${-1.6 * r}l${-1.6 * r},${1.6 * r}`,
    bar: `M${x - r},${y - r * .5}h${2 * r}v${r}h${-2 * r}z`,
    star: "M" + [...Array(10).keys()].map(i => { const a = Math.PI * (i / 5 - .5), q = i % 2 ? r * .5 : r * 1.3; return `${(x + q * Math.cos(a)).toFixed(1)},${(y + q * Math.sin(a)).toFixed(1)}`; }).join("L") + "z",
  };
  return d[shape];
}

function ticks(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(m => m * power >= rough) * power, positions = [];
  for (let at = Math.ceil(low / step); at * step <= high + 1e-12; at++) positions.push(+(at * step).toPrecision(12));
  return positions;
}

function frame(host, title, xLabel, yLabel, xs, ys, height) {
  const width = wide.matches ? (height > 330 ? 900 : 460) : 460, pad = {l: 62, r: 14, t: 30, b: 46};
  const span = values => {
    const known = values.filter(v => v !== null && v !== undefined && Number.isFinite(v));
    const low = known.length ? known.reduce((a, b) => Math.min(a, b)) : 0, high = known.length ? known.reduce((a, b) => Math.max(a, b)) : 1, more = (high - low || 1) * .06;
    return [low - more, high + more];
  };
  const [x0, x1] = span(xs), [y0, y1] = span(ys);
  const chart = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title});
  const x = v => pad.l + (v - x0) / (x1 - x0) * (width - pad.l - pad.r), y = v => height - pad.b - (v - y0) / (y1 - y0) * (height - pad.t - pad.b);
  for (const at of ticks(x0, x1)) chart.append(svg("line", {class: "grid", x1: x(at), x2: x(at), y1: pad.t, y2: height - pad.b}), svg("text", {x: x(at), y: height - pad.b + 16, "text-anchor": "middle"}, format(at)));
  for (const at of ticks(y0, y1)) chart.append(svg("line", {class: "grid", x1: pad.l, x2: width - pad.r, y1: y(at), y2: y(at)}), svg("text", {x: pad.l - 7, y: y(at) + 4, "text-anchor": "end"}, format(at)));
  chart.append(svg("text", {class: "axis", x: pad.l, y: 16}, yLabel), svg("text", {class: "axis", x: width - pad.r, y: height - 8, "text-anchor": "end"}, xLabel));
  host.append(chart);
  return {chart, x, y, width, height, pad, spots: [], edge: {left: pad.l, right: width - pad.r, top: pad.t, bottom: height - pad.b}};
}

const charts = [];
function hovering(at) {
  charts.push(at);
  const nearest = event => {
    const box = at.chart.getBoundingClientRect(), scale = at.width / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    let best = null, least = 24 * Math.max(1, scale);
    for (const spot of at.spots) { const far = Math.hypot(spot.x - px, spot.y - py); if (far < least) { least = far; best = spot; } }
    return best;
  };
  at.chart.addEventListener("pointermove", event => tip(nearest(event), event));
  at.chart.addEventListener("pointerleave", () => tip(null));
  at.chart.addEventListener("click", event => { const spot = nearest(event); if (spot) { tip(spot, event); choose(spot.run, true); } });
}

let hot = null;
function tip(spot, event) {
  const box = $("tip"), run = spot ? spot.run : null;
  box.hidden = !spot;
  if (spot) {
    const one = data.runs[spot.run], lines = [...data.keys.map((key, i) => [short(key), format(one.values[i], 6)]), ...spot.lines];
    box.replaceChildren(node("b", {}, `${spot.title} · run ${one.name}`), ...lines.map(([name, text]) => node("div", {}, `${name}: ${text}`)));
    const left = Math.min(event.pageX + 14, document.documentElement.clientWidth - box.offsetWidth - 8);
    box.style.left = Math.max(4, left) + "px"; box.style.top = event.pageY + 16 + "px";
  }
  if (run !== hot) { hot = run; light(); }
}
function light() {
  for (const part of document.querySelectorAll("[data-run]")) {
    const own = hot !== null && +part.dataset.run === hot;
    part.classList.toggle("hot", own);
    part.classList.toggle("faint", hot !== null && !own);
  }
  shade();
}

let front = null;
function shade() {
  if (!front) return;
  const limits = [...new Set(front.points.filter(p => p.main).map(p => data.runs[p.run].limit))].filter(v => v !== null);
  const limit = hot !== null ? data.runs[hot].limit : limits.length ? Math.max(...limits) : null;
  const {at, area, note} = front, known = limit !== null;
  const from = known ? Math.min(Math.max(at.x(limit), at.edge.left), at.edge.right) : at.edge.right;
  area.setAttribute("x", from); area.setAttribute("width", at.edge.right - from);
  note.textContent = known ? (hot !== null || limits.length === 1 ? `above the limit ${format(limit)}` : "above every limit") : "";
  note.setAttribute("x", at.edge.right - 6);
}

function pointTip(point) {
  const run = data.runs[point.run], whole = ends => format(ends[0]) + (ends[1] === null || ends[2] === null ? "" : ` [${format(ends[1])}, ${format(ends[2])}]`);
  const lines = [["E[reward]", whole(point.reward)], ["E[cost]", whole(point.cost)], ["limit met", format(point.feasible)], ["unsafe", share(point.unsafe)]];
  if (point.main && run.lambda !== null) lines.push(["lambda", format(run.lambda) + (run.exactLambda === null ? "" : ` (exact ${format(run.exactLambda)})`)]);
  if (point.exact[0] !== null) lines.push(["by enumeration", `E[cost] ${format(point.exact[0])}, E[reward] ${format(point.exact[1])}`]);
  return lines;
}
const share = part => part === null || part === undefined ? "–" : format(100 * part, 1) + " %";

function drawPoint(at, point, x, y, r = 6) {
  const {colour, shape} = look(point), line = shape === "plus" || shape === "cross";
  const fill = line || point.feasible === "no" ? "none" : colour;
  at.chart.append(svg("path", {class: "point", d: marker(shape, x, y, r), stroke: colour, fill, "fill-opacity": point.feasible === "undecided" ? .35 : 1, "data-run": point.run}));
  at.spots.push({x, y, run: point.run, title: data.names[point.who], lines: pointTip(point)});
}

function drawFrontier(points) {
  const host = document.querySelector("#frontier .charts"), many = points.length > 80;
  host.replaceChildren();
  const shown = new Set(points.filter(p => p.main).map(p => String(value(p, "policy.beta"))));
  const exact = data.frontiers.filter(one => shown.has(String(one.beta)));
  const stars = [...new Map(points.filter(p => p.main && data.runs[p.run].exact[0] !== null).map(p => [data.runs[p.run].exact.join(), p])).values()];
  const xs = points.flatMap(p => p.cost), ys = points.flatMap(p => p.reward);
  const at = frame(host, "E[reward] against E[cost]", "E[cost] (lower is safer)", "E[reward]", xs, ys, wide.matches ? 480 : 420);
  const inside = (x, y) => x >= at.edge.left && x <= at.edge.right && y >= at.edge.top && y <= at.edge.bottom;
  const area = svg("rect", {class: "infeasible", y: at.edge.top, height: at.edge.bottom - at.edge.top, x: at.edge.right, width: 0});
  const note = svg("text", {y: at.edge.top + 14, "text-anchor": "end"});
  at.chart.append(area, note);
  const limits = [...new Set(points.filter(p => p.main).map(p => data.runs[p.run].limit))].filter(v => v !== null);
  if (limits.length <= 12) for (const limit of limits) if (inside(at.x(limit), at.edge.top)) at.chart.append(svg("line", {class: "limit", x1: at.x(limit), x2: at.x(limit), y1: at.edge.top, y2: at.edge.bottom}));
  for (const one of exact) {
    const like = points.find(p => p.main && String(value(p, "policy.beta")) === String(one.beta));
    const path = one.points.map(([, c, r]) => [at.x(c), at.y(r)]).filter(([x, y]) => inside(x, y));
    if (path.length > 1) at.chart.append(svg("path", {class: "exact", d: "M" + path.map(p => p.map(v => v.toFixed(1)).join()).join("L"), stroke: state.colour === "policy.beta" && like ? look(like).colour : "currentColor"}));
  }
  const same = p => DIMENSIONS.filter(key => key !== "constraint.c_limit").map(key => value(p, key)).join();
  for (const group of Object.values(Object.groupBy ? Object.groupBy(points.filter(p => p.main), same) : {}))
    if (group.length > 1) at.chart.append(svg("path", {class: "link", stroke: look(group[0]).colour, d: "M" + [...group].sort((a, b) => a.cost[0] - b.cost[0]).map(p => `${at.x(p.cost[0]).toFixed(1)},${at.y(p.reward[0]).toFixed(1)}`).join("L")}));
  if (!many) for (const p of points) for (const [from, to, vertical] of [[p.cost[1], p.cost[2], 0], [p.reward[1], p.reward[2], 1]])
    if (from !== null && to !== null) at.chart.append(svg("line", {class: "bar", "data-run": p.run, stroke: look(p).colour, ...(vertical
      ? {x1: at.x(p.cost[0]), x2: at.x(p.cost[0]), y1: at.y(from), y2: at.y(to)} : {x1: at.x(from), x2: at.x(to), y1: at.y(p.reward[0]), y2: at.y(p.reward[0])})}));
  for (const p of stars) { const [c, r] = data.runs[p.run].exact; if (inside(at.x(c), at.y(r))) at.chart.append(svg("path", {class: "star", d: marker("star", at.x(c), at.y(r), 8)})); }
  const seen = new Set();  // all runs have the same reference
  for (const p of points) { const spot = [p.who, p.cost[0], p.reward[0]].join(); if (p.main || !seen.has(spot)) { seen.add(spot); drawPoint(at, p, at.x(p.cost[0]), at.y(p.reward[0]), many ? 4 : 6); } }
  hovering(at);
  legend(host, points, exact.length, stars.length);
  front = {at, area, note, points};
}

function legend(host, points, exact, stars) {
  const list = node("ul", {class: "legend"}), entries = new Map();
  for (const p of points) { const name = p.main ? (state.colour === "method" ? data.names[p.who] : `${short(state.colour)} ${format(value(p, state.colour), 6)}`) : data.names[p.who]; if (!entries.has(name)) entries.set(name, p); }
  const key = p => !p.main ? [1, 0] : [0, value(p, state.colour)];
  for (const [name, p] of [...entries].sort(([, a], [, b]) => key(a)[0] - key(b)[0] || order(key(a)[1], key(b)[1])).slice(0, 24)) {
    const icon = svg("svg", {viewBox: "0 0 16 16"}), {colour, shape} = look(p);
    icon.append(svg("path", {d: marker(shape, 8, 8, 5), stroke: colour, fill: ["plus", "cross"].includes(shape) ? "none" : colour, "stroke-width": 1.6}));
    list.append(node("li", {}, icon, name));
  }
  if (entries.size > 24) list.append(node("li", {}, `and ${entries.size - 24} more`));
  if (exact) list.append(node("li", {}, "dashed: exact frontier"));
  if (stars) list.append(node("li", {}, "star: exact optimum under its limit"));
  host.append(list);
}

function drawLines(host, points, title, column, band) {
  const runs = points.filter(p => p.main && data.runs[p.run].rounds.length);
  if (!runs.length) return false;
  const rows = runs.map(p => data.runs[p.run].rounds.filter(row => row[column] !== null));
  const at = frame(host, title, "dual round", title, rows.flat().map(r => r[0]), rows.flat().map(r => r[column]), 300);
  const thin = runs.length > 60;
  runs.forEach((p, i) => {
    const {colour} = look(p), path = rows[i].map(r => `${at.x(r[0]).toFixed(1)},${at.y(r[column]).toFixed(1)}`).join("L");
    if (band && runs.length <= 8) {
      const known = rows[i].filter(r => r[3] !== null), edge = sign => known.map(r => `${at.x(r[0]).toFixed(1)},${at.y(r[2] + sign * 1.96 * r[3]).toFixed(1)}`);
      at.chart.append(svg("path", {fill: colour, opacity: .15, d: "M" + [...edge(1), ...edge(-1).reverse()].join("L") + "z"}));
    }
    at.chart.append(svg("path", {class: "line", d: "M" + path, stroke: colour, "data-run": p.run, "stroke-opacity": thin ? .35 : .9}));
    const run = data.runs[p.run];
    for (const r of rows[i]) at.spots.push({x: at.x(r[0]), y: at.y(r[column]), run: p.run, title: data.names[p.who],
      lines: [["round", format(r[0])], ["lambda", format(r[1])], ["E[cost]", format(r[2]) + (r[3] === null ? "" : ` ± ${format(1.96 * r[3])}`)], ...(run.exactLambda === null ? [] : [["exact lambda", format(run.exactLambda)]])]});
  });
  hovering(at);
  return true;
}

function scatter(host, points, title, key, part) {
  const known = points.filter(p => p[key] !== null && p[key] !== undefined);
  if (!known.length) return false;
  const scale = part ? 100 : 1;
  const at = frame(host, title, "E[cost]", title, known.map(p => p.cost[0]), known.map(p => scale * p[key]), 300);
  for (const p of known) drawPoint(at, p, at.x(p.cost[0]), at.y(scale * p[key]), known.length > 80 ? 3.5 : 5);
  hovering(at);
  return true;
}

const COLUMNS = [
  ["run", p => data.runs[p.run].name], ["method", p => data.names[p.who]], ...data.keys.map(key => [short(key), p => value(p, key)]),
  ["lambda", p => p.main ? data.runs[p.run].lambda : null], ["exact lambda", p => p.main ? data.runs[p.run].exactLambda : null],
  ["E[reward]", p => p.reward[0]], ["± reward", p => p.reward[1] === null ? null : (p.reward[2] - p.reward[1]) / 2],
  ["E[cost]", p => p.cost[0]], ["± cost", p => p.cost[1] === null ? null : (p.cost[2] - p.cost[1]) / 2], ["limit met", p => p.feasible],
  ["unsafe %", p => p.unsafe === null ? null : +(100 * p.unsafe).toFixed(2)], ["CVaR90", p => p.cvar], ["KL (nats)", p => p.kl], ["tokens", p => p.tokens],
  ["unfinished %", p => p.unfinished === null ? null : +(100 * p.unfinished).toFixed(2)], ["exact E[cost]", p => p.exact[0]], ["KL to optimum", p => p.klOptimum],
];
let sorted = {column: 0, up: true}, shownRows = [], shownColumns = [];
function table(points) {
  shownColumns = COLUMNS.filter(([, read], i) => i < 2 || points.some(p => read(p) !== null && read(p) !== undefined));
  const head = node("tr"), body = node("tbody");
  shownColumns.forEach(([title], i) => {
    const button = node("button", {type: "button"}, title), cell = node("th", {scope: "col"}, button);
    if (sorted.column === i) cell.setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
    button.addEventListener("click", () => { sorted = {column: i, up: sorted.column === i ? !sorted.up : true}; table(points); document.querySelectorAll("#results thead button")[i].focus(); });
    head.append(cell);
  });
  const read = (shownColumns[sorted.column] || shownColumns[0])[1], none = v => v === null || v === undefined;
  shownRows = sorted.column === 0 ? (sorted.up ? [...points] : [...points].reverse()) : [...points].sort((a, b) => {
    const one = read(a), other = read(b);
    return none(one) || none(other) ? none(one) - none(other) : (sorted.up ? 1 : -1) * order(one, other);
  });
  for (const p of shownRows) {
    const row = node("tr", {"data-row": p.run});
    shownColumns.forEach(([title, get], i) => {
      const text = format(get(p), title === "KL (nats)" ? 4 : 3);
      if (i === 0) row.append(node("th", {scope: "row"}, node("button", {type: "button", "aria-label": `run ${text}`}, text)));
      else row.append(node("td", title === "limit met" ? {class: `text ${text}`} : typeof get(p) === "string" ? {class: "text"} : {}, text));
    });
    row.addEventListener("click", () => choose(p.run, true));
    body.append(row);
  }
  document.querySelector("#results table").replaceChildren(node("thead", {}, head), body);
}
function toCsv() {
  const quote = v => v === null || v === undefined ? "" : typeof v === "number" ? String(+v.toPrecision(6)) : /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v);
  const lines = [shownColumns.map(([title]) => quote(title)), ...shownRows.map(p => shownColumns.map(([, get]) => quote(get(p))))];
  return lines.map(line => line.join(",")).join("\n") + "\n";
}
$("csv").addEventListener("click", () => { $("csv").href = "data:text/csv;charset=utf-8," + encodeURIComponent(toCsv()); });

function choose(at, jump) {
  const run = data.runs[at], host = $("detail");
  const facts = [["run", run.name], ["method", data.names[run.who] || "–"], ["seed", format(run.seed)], ["alarm", format(run.alarm)], ["seconds", format(run.seconds, 0)], ["commit", format(run.commit)], ["data", format(run.data)]];
  const list = node("dl", {}, ...facts.flatMap(([name, text]) => [node("dt", {}, name), node("dd", {}, text)]));
  const config = Object.entries({...run.config, ...data.shared}).sort(([a], [b]) => a.localeCompare(b)).map(([key, v]) => `${key}: ${v}`).join("\n");
  host.replaceChildren(node("pre", {class: "command"}, run.command || "the command was not recorded"), list,
    ...(run.page ? [node("p", {}, node("a", {href: run.page.split("/").map(encodeURIComponent).join("/")}, "The report of this run"))] : []),
    node("details", {}, node("summary", {}, "Configuration"), node("pre", {tabindex: "0"}, config)));
  for (const row of document.querySelectorAll("[data-row]")) row.classList.toggle("chosen", +row.dataset.row === at);
  if (jump && !wide.matches) $("run").scrollIntoView({block: "nearest"});
}

const MOST_RUNS = 12;  // with their responses side by side
function drawSamples(points) {
  const host = $("prompts"), runs = [...new Set(points.filter(p => p.main).map(p => p.run))].slice(0, MOST_RUNS);
  host.replaceChildren(node("p", {class: "quiet"}, `The first answer of ${runs.length} of the runs shown, side by side for the same prompt; filter to choose which.`));
  for (const {prompt, responses} of data.samples) {
    const columns = node("div", {class: "responses"});
    for (const a of responses.filter(a => a.who === data.reference || runs.includes(a.run))) {
      const about = a.who === data.reference ? "" : " · " + data.runs[a.run].values.map((v, i) => `${short(data.keys[i])} ${format(v, 6)}`).join(" · ");
      const unsafe = a.cost === null ? "" : a.cost > 0 ? node("span", {class: "unsafe"}, "unsafe") : "safe";
      columns.append(node("div", {class: "response"}, node("p", {class: "quiet"}, data.names[a.who] + about), node("div", {tabindex: "0"}, a.text),
        node("p", {class: "quiet"}, `reward ${format(a.reward, 2)} · cost ${format(a.cost, 2)} `, unsafe)));
    }
    host.append(node("section", {class: "prompt"}, node("p", {class: "prompt-text"}, prompt), columns));
  }
  $("samples").hidden = !data.samples.length;
}

function drawCategories(points) {
  const known = points.filter(p => Object.keys(p.categories).length).slice(0, 60), section = $("categories");
  section.hidden = !known.length;
  if (!known.length) return;
  const names = [...new Set(known.flatMap(p => Object.keys(p.categories)))].sort();
  const grid = node("table", {}, node("thead", {}, node("tr", {}, node("th", {scope: "col"}, "run"), ...names.map(name => node("th", {scope: "col"}, name)))));
  const body = node("tbody");
  for (const p of known) body.append(node("tr", {}, node("th", {scope: "row"}, `${data.runs[p.run].name} ${data.names[p.who]}`), ...names.map(name => {
    const cell = node("td", {class: "heat"}, share(p.categories[name])), part = p.categories[name];
    if (part !== undefined) cell.style.background = `rgba(213,94,0,${(.6 * part).toFixed(2)})`;
    return cell;
  })));
  grid.append(body);
  section.querySelector(".charts").replaceChildren(node("div", {class: "wide", role: "region", tabindex: "0", "aria-label": "By category"}, grid));
}

function draw() {
  const points = visible(), own = points.filter(p => p.main).length;
  charts.length = 0; hot = null; $("tip").hidden = true;
  $("count").textContent = `${own} of ${data.runs.length} runs shown`;
  drawFrontier(points); shade();
  const rounds = document.querySelector("#rounds .charts"), tails = document.querySelector("#tails .charts");
  rounds.replaceChildren(); tails.replaceChildren();
  const any = [drawLines(rounds, points, "lambda (reward per cost)", 1, false), drawLines(rounds, points, "E[cost] of the policy's samples", 2, true)];
  $("rounds").hidden = !any.some(Boolean);
  for (const part of [["unsafe answers, %", "unsafe", true], ["CVaR90 of cost: mean of the worst tenth", "cvar"], ["KL to the reference (nats)", "kl"], ["length (tokens)", "tokens"]]) scatter(tails, points, ...part);
  drawCategories(points); table(points); drawSamples(points);
}
controls();
draw();
if (data.runs.length === 1) choose(0, false);
wide.addEventListener("change", draw);
