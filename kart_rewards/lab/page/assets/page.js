// The page of kart-rewards lab. It shows one or two tracks, A and B: a track is a drive with a reward set.
// It follows data.js in one script.

// ---------------------------------------------------------------------------------------------------- state

let state = null; // of the server: the reward sets, the list of drives, the findings
const view = {
  drives: [0, null], set: 0, frame: 0, term: REWARD, colour: "", x: "", y: "", summed: false, raw: false, range: null,
  playing: null,
};
let tracks = []; // {drive, set, data, score, film}: what is known of them so far
const loadedDrives = new Map();
const films = new Map();
let failure = ""; // of the connection

const other = () => tracks[1];
const frames = () => Math.max(1, ...view.drives.filter((each) => each !== null).map((each) => state.drives[each].frames));
const termOf = (track, name) => track.score && (name === REWARD ? track.score.all : track.score.terms.get(name));
const termNames = () => [...new Set(tracks.flatMap((track) => [...(track.score?.terms.keys() ?? [])])), REWARD];

function wantedTracks() {
  const [a, b] = view.drives;
  if (b !== null) return [[a, view.set], [b, view.set]];
  return state.sets.length > 1 ? [[a, 0], [a, 1]] : [[a, 0]];
}

/** Makes the tracks of the chosen drives and sets. What is loaded already is kept. */
function chooseTracks() {
  const old = tracks;
  tracks = wantedTracks().map(([drive, set]) => old.find((each) => each.drive === drive && each.set === set)
    ?? { drive, set, data: null, score: null, error: "" });
  for (const [drive, film] of films) {
    if (!view.drives.includes(drive)) {
      film.close();
      films.delete(drive);
    }
  }
  for (const track of tracks) {
    if (!films.has(track.drive)) films.set(track.drive, new Film(track.drive, drawSoon));
    loadDrive(track);
    loadScore(track);
  }
  view.frame = Math.min(view.frame, frames() - 1);
  view.range = null;
  drawAll();
}

async function loadDrive(track) {
  if (track.data) return;
  if (!loadedDrives.has(track.drive)) loadedDrives.set(track.drive, get(`drives/${track.drive}`));
  try {
    const data = await loadedDrives.get(track.drive);
    if (data.error) throw new Error(data.error);
    track.data = data;
    chooseAxes();
  } catch (error) {
    track.error = String(error.message);
    loadedDrives.delete(track.drive);
  }
  if (loadedDrives.size > 12) loadedDrives.delete(loadedDrives.keys().next().value);
  if (tracks.includes(track)) drawAll();
}

async function loadScore(track) {
  const wanted = scoredVersion(track);
  if (track.isLoading || (track.score && track.score.version >= wanted)) return;
  track.isLoading = true;
  try {
    const content = await get(`drives/${track.drive}/scores/${track.set}`);
    if (!content.error) {
      track.score = scoreOf(content);
      chooseFirstTerm(track);
    }
    track.error = content.error ?? "";
    track.failed = content.error ? content.version : null;
  } catch {
    return; // the server has ended; the status says so
  } finally {
    track.isLoading = false;
  }
  if (!tracks.includes(track)) return;
  drawAll();
  if (scoredVersion(track) > (track.score?.version ?? 0) && track.failed !== scoredVersion(track)) loadScore(track);
}

/** Chooses a term if none is chosen, or if it is gone: the last that pays on this drive. An author's own come last. */
function chooseFirstTerm(track) {
  if (view.isTermChosen && termNames().includes(view.term)) return;
  const names = [...track.score.terms.keys()];
  view.term = names.findLast((name) => track.score.terms.get(name).marks.length) ?? names.at(-1) ?? REWARD;
}

function scoredVersion(track) {
  const summary = state.drives[track.drive].scores[track.set];
  return summary && !summary.error ? summary.version : 0;
}

function onState(received) {
  const isFirst = !state;
  state = received;
  failure = "";
  if (isFirst) {
    view.drives[0] = inOrder()[0][1][0];
    chooseTracks();
    return;
  }
  for (const track of tracks) {
    const summary = state.drives[track.drive].scores[track.set];
    track.error = state.sets[track.set].error ?? summary?.error ?? "";
    loadScore(track);
  }
  drawStateSoon();
}

let isStateWaiting = false;

/** A change of the files makes many events, and the list can be long. */
function drawStateSoon() {
  if (isStateWaiting) return;
  isStateWaiting = true;
  setTimeout(() => {
    isStateWaiting = false;
    drawList();
    drawStatus();
    drawFindings();
  }, 100);
}

// ---------------------------------------------------------------------------------------------------- list and status

const letter = (index) => "AB"[index];

function drawStatus() {
  $("sets").replaceChildren(...state.sets.map((set, index) => {
    const place = tracks.findIndex((track) => track.set === index);
    const both = view.drives[1] !== null;
    const chip = make(both && state.sets.length > 1 ? "button" : "div", { className: `set${place < 0 ? " unused" : ""}`, title: set.name },
      ...(both ? [] : [make("i", { className: `swatch ${index ? "b" : ""}` })]), make("span", { textContent: set.name }));
    if (chip.tagName === "BUTTON") chip.onclick = () => { view.set = index; chooseTracks(); };
    return chip;
  }));
  const errors = [...state.sets.map((set) => set.error), ...tracks.map((track) => track.error),
    ...state.drives.flatMap((drive) => drive.scores.map((score) => score?.error))].filter(Boolean);
  const status = $("status");
  status.className = failure || errors.length ? "bad" : "";
  const seconds = Math.max(...state.sets.map((set) => set.seconds ?? 0));
  const missing = state.drives.flatMap((drive) => drive.scores).filter((score, index) =>
    !score || score.version < state.sets[index % state.sets.length].version).length;
  if (failure) status.textContent = failure;
  else if (errors.length) status.textContent = "error";
  else if (isEmbedded) status.textContent = "";
  else if (state.sets.some((set) => set.busy && !missing)) status.textContent = "scoring";
  else if (missing) status.textContent = `scoring: ${grouped(missing)} drives to go`;
  else status.textContent = seconds ? `scored in ${seconds.toFixed(2)} s · scored again on each save` : "scored again on each save";
  $("error").hidden = !errors.length;
  if (errors.length) {
    const files = state.sets.find((set) => set.error);
    const hasNumbers = tracks.some((track) => track.score);
    $("error").querySelector("h2").textContent = hasNumbers
      ? "An error in the rewards. The page shows the numbers from before it." : files
        ? "An error in the rewards. The numbers come when it is corrected." : "An error";
    $("error").querySelector("pre").textContent = errors[0];
  }
}

/** The drives by course, [course, [drive, …]], the best outcome first. */
function inOrder() {
  const groups = new Map();
  state.drives.forEach((drive, index) => {
    const key = state.drives.every((each) => each.game === state.drives[0].game) ? drive.state : `${drive.game} ${drive.state}`;
    groups.set(key, [...(groups.get(key) ?? []), index]);
  });
  const order = (index) => state.drives[index].rank ?? [];
  const better = (one, two) => {
    const [a, b] = [order(one), order(two)];
    const place = a.findIndex((value, index) => value !== b[index]);
    return place < 0 ? one - two : b[place] - a[place];
  };
  return [...groups].sort(([a], [b]) => a.localeCompare(b)).map(([name, members]) => [name, members.sort(better)]);
}

function drawList() {
  const children = inOrder().flatMap(([name, members]) => [
    make("h2", {}, name || "drives", make("span", { textContent: "return" })), ...members.map(driveItem),
  ]);
  const focus = document.activeElement?.dataset?.focus;
  $("drives").replaceChildren(...children);
  if (focus) $("drives").querySelector(`[data-focus="${focus}"]`)?.focus();
}

function driveItem(index) {
  const drive = state.drives[index];
  const place = view.drives.indexOf(index);
  const paid = make("i", {
    textContent: drive.scores.map((score) => (score?.error && score.transformed === undefined ? "error" : short(score?.transformed))).join(" / "),
    title: "the return: the sum of the transformed rewards up to the end of the episode",
    className: drive.scores.some((score) => score?.error) ? "failed"
      : drive.scores.some((score, set) => score && score.version < state.sets[set].version) ? "old" : "",
  });
  const name = place < 0 || view.drives[1] === null ? drive.label : `${letter(place)} · ${drive.label}`;
  const show = make("button", { title: `${drive.label}, driven by ${drive.driver || "?"}, ${grouped(drive.frames)} frames` },
    make("b", { textContent: name }), paid, make("small", { textContent: drive.outcome }));
  show.dataset.focus = `show-${index}`;
  show.onclick = () => {
    view.drives = [index, view.drives[1] === index ? null : view.drives[1]];
    chooseTracks();
  };
  const compare = make("button", {
    className: "compare", textContent: place === 1 ? "×" : "⇆",
    title: place === 1 ? "do not compare" : "show side by side", disabled: place === 0,
  });
  compare.dataset.focus = `compare-${index}`;
  compare.setAttribute("aria-label", `${compare.title}: ${drive.label}`);
  compare.onclick = () => {
    view.drives[1] = place === 1 ? null : index;
    chooseTracks();
  };
  const item = make("div", { className: `drive ${place === 0 ? "a" : place === 1 ? "b" : ""}` }, show, compare);
  item.dataset.drive = drive.label;
  return item;
}

// ---------------------------------------------------------------------------------------------------- charts

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["accent", "charge", "other", "text", "muted", "line", "soft", "road", "pane"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
};

function mixed(from, to, part) {
  const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [a, b] = [channels(from), channels(to)];
  return `rgb(${a.map((value, index) => Math.round(value + (b[index] - value) * part)).join(",")})`;
}

const BOTTOM = 24; // height of the time axis
let timeline = { width: 1, height: 1 };
const rangeShown = () => view.range ?? [-0.5, frames() - 0.5];

/** Thins values to the lowest and the highest of each column of pixels, so that no single frame is lost. */
function thinned(values, from, to, width) {
  const first = Math.max(0, Math.floor(from));
  const last = Math.min(values.length - 1, Math.ceil(to));
  const x = [];
  const y = [];
  const step = Math.max(1, (last - first + 1) / width);
  if (step < 2) {
    for (let i = first; i <= last; i += 1) {
      x.push(i - 0.5);
      y.push(values[i]);
    }
    if (last >= first) {
      x.push(last + 0.5);
      y.push(values[last]);
    }
    return { x, y };
  }
  for (let start = first; start <= last; start += step) {
    const begin = Math.round(start);
    const end = Math.min(last + 1, Math.round(start + step));
    let low = begin;
    let high = begin;
    for (let i = begin; i < end; i += 1) {
      if (values[i] < values[low]) low = i;
      if (values[i] > values[high]) high = i;
    }
    for (const i of low < high ? [low, high] : [high, low]) {
      x.push(i);
      y.push(values[i]);
    }
  }
  return { x, y };
}

function drawTimeline() {
  const names = termNames();
  const room = $("timeline").querySelector(".scroll").clientHeight - BOTTOM;
  const row = clamp(Math.floor(room / names.length), tracks.length > 1 ? 37 : 26, 64);
  document.documentElement.style.setProperty("--row", `${row}px`);
  drawRows(names);
  const chart = $("chart");
  const width = Math.max(50, chart.clientWidth);
  const height = row * names.length + BOTTOM;
  timeline = { width, height, row, names };
  chart.style.height = `${height}px`;
  const c = colours();
  const [from, to] = rangeShown();
  const traces = [];
  const plot = height - BOTTOM;
  const layout = {
    width, height, margin: { l: 0, r: 0, t: 0, b: BOTTOM }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 11, color: c.muted }, shapes: [],
    annotations: [],
    xaxis: {
      range: [from, to], showgrid: false, zeroline: false, ticks: "outside", ticklen: 4, tickcolor: c.line,
      nticks: Math.max(3, Math.floor(width / 70)), tickformat: ",d", anchor: names.length > 1 ? `y${names.length}` : "y", automargin: false,
    },
  };
  names.forEach((name, index) => {
    const axis = index ? `y${index + 1}` : "y";
    let low = 0;
    let high = 0;
    [...tracks].reverse().forEach((track) => {
      const term = termOf(track, name);
      if (!term) return;
      const values = term.series(view.raw, view.summed);
      low = Math.min(low, values.low);
      high = Math.max(high, values.high);
      const isB = track === other();
      const colour = isB ? c.other : values.high + values.low < 0 ? c.charge : c.accent;
      traces.push({
        ...thinned(values, from, to, width), type: "scatter", mode: "lines", yaxis: axis, hoverinfo: "skip",
        line: { color: colour, width: 1.25, shape: to - from < width ? "hv" : "linear", dash: isB ? "dot" : "solid", simplify: false },
        fill: isB ? "none" : "tozeroy", fillcolor: `${colour}22`,
      });
    });
    if (!tracks.some((track) => termOf(track, name))) traces.push({ x: [0], y: [0], yaxis: axis, mode: "lines", type: "scatter" });
    const pad = (high - low || 1) * 0.08;
    layout[`yaxis${index ? index + 1 : ""}`] = {
      domain: [1 - (index + 1) * row / plot + 3 / plot, 1 - index * row / plot - 3 / plot], range: [low - pad, high + pad], showgrid: false,
      zeroline: true, zerolinecolor: c.line, zerolinewidth: 1, showticklabels: false, automargin: false,
    };
  });
  layout.shapes.push(...lapLines(c), ...endOfEpisode(c));
  $("laps").replaceChildren(...lapFrames().flatMap((frame, index) => {
    const label = make("span", { textContent: `lap ${index + 2}` });
    label.style.left = `${chartX(frame)}px`;
    return frame >= from && chartX(frame) < width - 18 ? [label] : []; // not beyond the chart
  }));
  Plotly.react(chart.querySelector(".plot"), traces, layout, { staticPlot: true });
}

const vertical = (x, color, dash) => ({
  type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "below", line: { color, width: 1, dash },
});

/** The frames on which a lap begins, from the second on; the first begins at the start. */
function lapFrames() {
  const laps = tracks[0]?.data?.columns.laps ?? [];
  return laps.flatMap((lap, i) => (i && lap > laps[i - 1] && lap > 128 ? [i] : []));
}

const lapLines = (c) => lapFrames().map((frame) => vertical(frame, c.line, "solid"));

/** Shades the frames that the agent would not have: a done rule ends the episode before them. */
function endOfEpisode(c) {
  return tracks.flatMap((track) => {
    const summary = track.score?.summary;
    if (!summary?.ended_by || summary.end >= state.drives[track.drive].frames - 1) return [];
    const shade = {
      type: "rect", xref: "x", yref: "paper", x0: summary.end + 0.5, x1: frames() - 0.5, y0: 0, y1: 1, layer: "below",
      fillcolor: c.muted, opacity: 0.12, line: { width: 0 },
    };
    return track === other() ? [vertical(summary.end, c.other, "dash")] : [shade, vertical(summary.end, c.charge, "dash")];
  });
}

let cursorCells = [];

function drawRows(names) {
  cursorCells = [];
  const twice = (cells) => cells.map((cell) => make("span", { textContent: cell ?? "–", className: cell?.startsWith?.("−") ? "negative" : "" }));
  $("rows").replaceChildren(...names.map((name, index) => {
    const terms = tracks.map((track) => termOf(track, name));
    const minutes = tracks.map((track, i) => terms[i] && Math.max(1, terms[i].end) / state.drives[track.drive].frames_per_second / 60);
    const sums = terms.map((term) => term?.sumOf(view.raw));
    const cursor = make("span", {}, ...twice(tracks.map(() => "")));
    cursorCells.push({ name, cells: [...cursor.children] });
    const digit = name === REWARD || index > 9 ? "" : String((index + 1) % 10);
    const isSilent = terms.every((term) => !term || !term.marks.length);
    const item = make("button", { className: `row${name === view.term ? " chosen" : ""}`, title: terms.find(Boolean)?.summary ?? "" },
      make("span", { className: "key" }, ...(digit ? [make("kbd", { textContent: digit })] : [])),
      make("span", { className: `name${isSilent ? " nothing" : ""}`, textContent: name }),
      make("span", {}, ...twice(terms.map((term) => (!term ? "–" : term.weight === null ? "" : plain(term.weight).replace("-", "−"))))),
      make("span", {}, ...twice(sums.map((sum) => sum !== undefined && short(sum)).map((text) => text || "–"))),
      make("span", {}, ...twice(sums.map((sum, i) => (sum === undefined ? "–" : short(sum / minutes[i]))))),
      cursor);
    item.dataset.term = name;
    item.onclick = () => chooseTerm(name);
    return item;
  }));
}

function chooseTerm(name) {
  view.term = name;
  view.isTermChosen = true;
  for (const row of $("rows").children) row.classList.toggle("chosen", row.dataset.term === name);
  drawMap();
  drawSource();
  drawSoon();
}

// ---------------------------------------------------------------------------------------------------- map

const isNumbers = (track, name) => typeof track?.data?.columns[name]?.[0] === "number";
const numberNames = () => Object.keys(tracks[0]?.data?.columns ?? {}).filter((name) => isNumbers(tracks[0], name));

/** Chooses the variables of the map: the kart's position, else a pair such as player_x and player_y, else none. */
function chooseAxes() {
  const names = numberNames();
  if (names.includes(view.x) && names.includes(view.y)) return;
  const xs = ["kart_x", ...names.filter((name) => /(^|_)x(_|$)/i.test(name))].filter((name) => names.includes(name));
  const x = xs.find((name) => names.includes(name.replace(/x(?=_|$)/i, "y"))) ?? "";
  view.x = x;
  view.y = x && x.replace(/x(?=_|$)/i, "y");
}

function drawChoices() {
  const names = numberNames();
  const fill = (id, options, value) => {
    const select = $(id);
    const wanted = options.map(([name, text]) => `${name} ${text}`).join("|");
    if (select.dataset.options !== wanted) {
      select.replaceChildren(...options.map(([name, text]) => make("option", { value: name, textContent: text })));
      select.dataset.options = wanted;
    }
    select.value = value;
  };
  const variables = names.map((name) => [name, name]);
  fill("x", [["", "no map"], ...variables], view.x);
  fill("y", [["", "no map"], ...variables], view.y);
  if (view.colour && !names.includes(view.colour)) view.colour = "";
  fill("colour", [["", "the chosen term"], ...variables], view.colour);
}

let place = null; // from the variables to pixels of the map

/** Draws the path as lines of a few colours: thousands of separate points would take seconds. */
function drawMap() {
  drawChoices();
  const box = $("map").getBoundingClientRect();
  const plot = $("map").querySelector(".plot");
  const known = tracks.filter((track, index) => isNumbers(track, view.x) && isNumbers(track, view.y)
    && tracks.findIndex((each) => each.drive === track.drive) === index);
  place = null;
  $("map-legend").hidden = !known.length;
  const course = view.x === "kart_x" && view.y === "kart_y" ? tracks[0]?.data?.map : null;
  $("map-title").textContent = course ? "Course" : "Map";
  if (!known.length || box.width < 20) {
    Plotly.purge(plot);
    plot.replaceChildren(make("div", { className: "empty", textContent: tracks[0]?.data ? "Choose two variables for a map." : "" }));
    return;
  }
  plot.querySelector(".empty")?.remove();
  const c = colours();
  const road = course?.line ?? [];
  const all = (axis, index) => [known.flatMap((track) => track.data.columns[axis]), road.map((point) => point[index])].flat();
  const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const isPlace = /x(_|$)/i.test(view.x) && /y(_|$)/i.test(view.y);
  const margin = (course?.width ?? 0) / 2;
  const [x0, x1] = extent(all(view.x, 0)).map((value, index) => value + (index ? margin : -margin));
  const [y0, y1] = extent(all(view.y, 1)).map((value, index) => value + (index ? margin : -margin));
  let perX = (box.width - 36) / (x1 - x0 || 1);
  let perY = (box.height - 28) / (y1 - y0 || 1);
  if (isPlace) perX = perY = Math.min(perX, perY); // a map is not stretched
  const range = (low, high, per, size) => [(low + high) / 2 - size / per / 2, (low + high) / 2 + size / per / 2];
  const xs = range(x0, x1, perX, box.width);
  const ys = range(y0, y1, perY, box.height);
  place = {
    x: (value) => (value - xs[0]) * perX,
    y: (value) => (isPlace ? value - ys[0] : ys[1] - value) * perY, // screens count downwards
    marks: [],
  };
  const traces = [];
  if (road.length) {
    const closed = [...road, ...road.slice(0, 3)]; // so that the ends overlap
    const line = { color: c.road, width: Math.max(2, course.width * perX), simplify: false };
    traces.push({ x: closed.map((point) => point[0]), y: closed.map((point) => point[1]), mode: "lines", line });
  }
  [...known].reverse().forEach((track) => traces.push(...pathOf(track, c)));
  known.forEach((track) => traces.push(...marksOf(track, c)));
  const axis = { showgrid: false, zeroline: false, showticklabels: false, automargin: false };
  Plotly.react(plot, traces.map((trace) => ({ type: "scatter", hoverinfo: "skip", ...trace })), {
    width: box.width, height: box.height, margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", xaxis: { ...axis, range: xs }, yaxis: { ...axis, range: isPlace ? [ys[1], ys[0]] : ys },
  }, { staticPlot: true });
}

const LEVELS = 8;

/** The path of a track, as one line for each colour. */
function pathOf(track, c) {
  const xs = track.data.columns[view.x];
  const ys = track.data.columns[view.y];
  if (track === other() && other().drive !== tracks[0].drive) {
    return [{ x: xs, y: ys, mode: "lines", line: { color: c.other, width: 1.5, dash: "dot" } }];
  }
  const term = !view.colour && termOf(track, view.term);
  const values = view.colour ? track.data.columns[view.colour] : term ? term.series(view.raw || !term.weight, false) : null;
  const [low, high] = !values ? [0, 1] : term ? [0, Math.max(values.high, -values.low) || 1]
    : values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const level = (i) => (values ? Math.trunc(clamp((values[i] - low) / (high - low || 1), -1, 1) * (LEVELS - 0.001)) : 0);
  const lines = new Map();
  for (let i = 1, before = null; i < xs.length; i += 1) {
    let now = level(i);
    if (term && values[i]) now = Math.sign(values[i]) * (Math.abs(now) + 1);
    if (!lines.has(now)) lines.set(now, { x: [], y: [] });
    const line = lines.get(now);
    if (now !== before) {
      line.x.push(null, xs[i - 1]);
      line.y.push(null, ys[i - 1]);
    }
    line.x.push(xs[i]);
    line.y.push(ys[i]);
    before = now;
  }
  drawLegend(c, term, low, high, values);
  const neutral = mixed(c.muted, c.pane, 0.45);
  return [...lines].sort(([a], [b]) => Math.abs(a) - Math.abs(b)).map(([number, line]) => ({
    ...line, mode: "lines",
    line: { width: number ? 3.5 : 2.5, simplify: false, color: mixed2(neutral, number < 0 ? c.charge : c.accent, Math.abs(number) / LEVELS) },
  }));
}

const hex = (colour) => (colour.startsWith("rgb") ? `#${colour.match(/\d+/g).map((each) => Number(each).toString(16).padStart(2, "0")).join("")}` : colour);
const mixed2 = (from, to, part) => mixed(hex(from), hex(to), clamp(part, 0, 1));

function drawLegend(c, term, low, high, values) {
  const neutral = mixed(c.muted, c.pane, 0.45);
  const ends = term ? [values.low < 0 ? c.charge : neutral, values.high > 0 ? c.accent : neutral] : [neutral, c.accent];
  const texts = term && values ? [short(values.low), short(values.high)] : [short(low), short(high)];
  const ramp = make("i", { className: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${ends[0]}, ${neutral}${term && values.low < 0 && values.high > 0 ? " 50%" : ""}, ${ends[1]})`;
  if (!(term && values.low < 0)) ramp.style.background = `linear-gradient(to right, ${neutral}, ${ends[1]})`;
  else if (!(values.high > 0)) ramp.style.background = `linear-gradient(to right, ${ends[0]}, ${neutral})`;
  const marks = termOf(tracks[0], view.term)?.marks.length ?? 0;
  $("map-legend").replaceChildren(...[view.colour || view.term, texts[0]].map((text) => make("span", { textContent: text })), ramp,
    make("span", { textContent: texts[1] }),
    make("span", { className: "count", textContent: view.term === REWARD ? "" : `${view.term}: ${grouped(marks)} mark${marks === 1 ? "" : "s"}` }));
}

const MOST_MARKS = 1500;

/** The marks of the chosen term. */
function marksOf(track, c) {
  if (view.term === REWARD) return [];
  const isB = track !== tracks[0];
  const term = termOf(track, view.term);
  let marked = term?.marks ?? [];
  if (!marked.length) return [];
  const step = Math.ceil(marked.length / MOST_MARKS);
  marked = marked.filter((_, index) => index % step === 0);
  const xs = track.data.columns[view.x];
  const ys = track.data.columns[view.y];
  place.marks.push(...marked.map((frame) => ({ frame, x: place.x(xs[frame]), y: place.y(ys[frame]) })));
  const raw = term.series(true, false);
  return [{
    x: marked.map((frame) => xs[frame]), y: marked.map((frame) => ys[frame]), mode: "markers",
    marker: {
      size: isB ? 6 : 8, color: isB ? c.other : marked.map((frame) => (raw[frame] * (term.weight || 1) < 0 ? c.charge : c.accent)),
      line: { color: c.pane, width: 1.5 }, opacity: 1,
    },
  }];
}

/** The frame at a place of the map: of a mark if one is near, else of the path. */
function frameAt(x, y) {
  const nearest = (candidates) => candidates.reduce((best, each) => {
    const distance = Math.hypot(each.x - x, each.y - y);
    return distance < best.distance ? { frame: each.frame, distance } : best;
  }, { frame: null, distance: Infinity });
  const mark = nearest(place.marks);
  if (mark.distance < 10) return mark.frame;
  const { [view.x]: xs, [view.y]: ys } = tracks[0].data.columns;
  // Of several laps that pass here, the one that is nearest in time counts.
  let best = { frame: null, cost: Infinity };
  for (let i = 0; i < xs.length; i += 1) {
    const distance = Math.hypot(place.x(xs[i]) - x, place.y(ys[i]) - y);
    const cost = distance + Math.abs(i - view.frame) / xs.length;
    if (distance < 24 && cost < best.cost) best = { frame: i, cost };
  }
  return best.frame;
}

// ---------------------------------------------------------------------------------------------------- source, findings

const KEYWORDS = "and as assert async await break class continue def del elif else except finally for from global if import in is lambda None nonlocal not or pass raise return True False try while with yield".split(" ").join("|");
const TOKENS = new RegExp(`("""[\\s\\S]*?"""|'''[\\s\\S]*?'''|"(?:\\\\.|[^"\\\\\\n])*"|'(?:\\\\.|[^'\\\\\\n])*')|(#[^\\n]*)|(^[ \\t]*@[\\w.]+)|\\b(${KEYWORDS})\\b`, "gm");

/** A file and line without the folder. */
const inShort = (where) => where.split(/[\\/]/).at(-1);

function drawSource() {
  const terms = tracks.map((track) => termOf(track, view.term));
  const term = terms.find((each) => each?.source) ?? terms.find(Boolean);
  $("where").textContent = inShort(term?.where ?? "");
  $("where").title = term?.where ?? "";
  drawFacts(terms);
  const pieces = [];
  const text = term?.source?.replace(/\n$/, "") ?? "";
  let last = 0;
  for (const match of text.matchAll(TOKENS)) {
    pieces.push([text.slice(last, match.index), ""], [match[0], match[1] ? "string" : match[2] ? "comment" : match[3] ? "decorator" : "keyword"]);
    last = match.index + match[0].length;
  }
  pieces.push([text.slice(last), ""]);
  const lines = [[]];
  for (const [piece, kind] of pieces) {
    piece.split("\n").forEach((part, index) => {
      if (index) lines.push([]);
      if (part) lines.at(-1).push(make("span", { textContent: part, className: kind }));
    });
  }
  const numbered = lines.map((line, index) => make("span", { className: "line" },
    make("span", { className: "number", textContent: String((term?.line ?? 1) + index) }), ...line));
  $("source").replaceChildren(...(text ? numbered : [make("div", { className: "empty", textContent: term?.summary ?? "" })]));
}

/** How often the chosen term fires, and how much of everything it is. */
function drawFacts(terms) {
  $("facts").replaceChildren(...terms.flatMap((term, index) => {
    if (!term || view.term === REWARD) return [];
    const facts = [`fires on ${grouped(term.frames)} frame${term.frames === 1 ? "" : "s"}`, `${(100 * term.share).toFixed(1).replace("-", "−")} % of all`];
    if (term.per_lap !== null) facts.push(`${short(term.per_lap)} per lap`);
    return [make("div", { textContent: `${tracks.length > 1 ? `${letter(index)}: ` : ""}${facts.join(" · ")}` })];
  }));
}

/** What lint found. While it runs again, the findings of before stay, but pale. */
function drawFindings() {
  const { findings, error, busy } = state.lint;
  $("findings-status").textContent = busy ? "linting…" : findings ? `${findings.length || "no"} finding${findings.length === 1 ? "" : "s"}` : "";
  $("findings").classList.toggle("old", busy && Boolean(findings));
  const none = findings?.length ? "" : busy ? "Lint drives in the emulator, and looks for mistakes in the rewards." : error || !findings ? "" : "Lint found no mistake.";
  const shown = JSON.stringify([findings, error, none]);
  if ($("findings").dataset.shown === shown) return; // else the focus would be lost
  $("findings").dataset.shown = shown;
  $("findings").replaceChildren(
    ...(error ? [make("div", { className: "empty failed", textContent: `Lint could not examine the rewards: ${error}` })] : []),
    ...(findings ?? []).map(findingItem), ...(none ? [make("div", { className: "empty", textContent: none })] : []));
}

function findingItem(finding) {
  const isHere = finding.number !== null;
  const item = make("button", { className: "finding", disabled: !isHere }, make("div", {}, make("b", { textContent: finding.title }), make("code", { textContent: inShort(finding.where), title: finding.where })),
    make("span", { textContent: finding.text }), make("em", { textContent: finding.remedy }),
    make("small", { textContent: `${finding.drive}, frame ${grouped(finding.frame)}${isHere ? "" : ": this drive is not on the page"}` }));
  item.onclick = () => {
    if (finding.number !== view.drives[0]) {
      view.drives = [finding.number, null];
      chooseTracks();
    }
    if (termNames().includes(finding.script)) chooseTerm(finding.script);
    else { // the scores of the drive come later
      view.term = finding.script;
      view.isTermChosen = true;
    }
    play(false);
    seek(finding.frame);
  };
  return item;
}

// ---------------------------------------------------------------------------------------------------- frame by frame

/** The largest size of the pictures that leaves room for the timeline. */
function scale() {
  const pictures = view.drives[1] === null ? 1 : 2;
  const width = document.querySelector("main").clientWidth - (pictures > 1 ? 0 : $("side").offsetWidth);
  const [wide, high] = pictureSize();
  const fits = (factor) => high * factor + 44 * 2 + 268 <= innerHeight && pictures * wide * factor <= width - 240; // of the map
  return [4, 3, 2, 1.5, 1].find(fits) ?? 1;
}

function pictureSize() {
  const format = [...films.values()].find((film) => film.format)?.format;
  return format ? [format.width, format.height] : [256, 224];
}

function drawPictures() {
  const shown = view.drives.filter((each) => each !== null);
  const factor = scale();
  const size = pictureSize();
  const holder = $("pictures");
  const key = `${shown} ${factor} ${size}`;
  if (holder.dataset.key === key) return;
  holder.dataset.key = key;
  holder.replaceChildren(...shown.map((drive, index) => {
    const canvas = make("canvas", { width: size[0], height: size[1] });
    canvas.style.width = `${size[0] * factor}px`;
    canvas.style.height = `${size[1] * factor}px`;
    const box = make("figure", { className: "picture" }, canvas, make("p", { hidden: true }));
    box.style.margin = "0";
    if (shown.length > 1) box.append(make("figcaption", {}, make("i", { className: `swatch ${index ? "b" : ""}` }), `${letter(index)} · ${state.drives[drive].label}`));
    box.dataset.drive = drive;
    return box;
  }));
}

function drawPicture(box) {
  const drive = Number(box.dataset.drive);
  const film = films.get(drive);
  const canvas = box.querySelector("canvas");
  const frame = Math.min(view.frame, state.drives[drive].frames - 1);
  const message = box.querySelector("p");
  const picture = film?.picture(frame);
  if (picture && canvas.dataset.frame !== String(picture.frame)) {
    canvas.getContext("2d").drawImage(picture.picture, 0, 0, canvas.width, canvas.height);
    canvas.dataset.frame = picture.frame;
  }
  const isMissing = film && (frame >= film.frames || (film.error && !film.chunks.length));
  message.hidden = !isMissing;
  if (isMissing) {
    message.textContent = film.error ? film.error
      : `The emulator replays the drive: ${grouped(film.frames)} of ${grouped(state.drives[drive].frames)} frames`;
  }
}

function drawRam() {
  const table = $("ram");
  const data = tracks.map((track) => track.data);
  const separate = view.drives[1] !== null ? tracks : tracks.slice(0, 1);
  const names = [...new Set(separate.flatMap((track) => Object.keys(track.data?.columns ?? {})))];
  const key = `${names} ${separate.map((track) => track.drive)} ${data.map(Boolean)}`;
  if (table.dataset.key !== key) {
    table.dataset.key = key;
    table.replaceChildren(...["held", "action", ...names].filter((name) => name !== "action" || separate.some((track) => track.data?.actions.length))
      .map((name) => make("tr", {}, make("th", { textContent: name, scope: "row" }), ...separate.map(() => make("td")))));
    table.names = [...table.rows].map((row) => row.cells[0].textContent);
  }
  table.names.forEach((name, index) => {
    separate.forEach((track, place_) => {
      const cell = table.rows[index].cells[place_ + 1];
      const [now, before] = [0, 1].map((ago) => valueOf(track, name, clamp(view.frame - ago, 0, state.drives[track.drive].frames - 1)));
      if (cell.textContent !== now) cell.textContent = now;
      cell.classList.toggle("changed", now !== before);
      cell.classList.toggle("long", now.length > 12); // an array, or many buttons
    });
  });
}

function valueOf(track, name, frame) {
  if (!track.data) return "";
  if (name === "held") {
    const mask = track.data.masks[frame];
    return track.data.buttons.filter((button, bit) => button && (mask / 2 ** bit) & 1).join(" ") || "–";
  }
  const value = name === "action" ? track.data.actions[frame] : track.data.columns[name]?.[frame];
  if (value === undefined || value === null) return "–";
  return Array.isArray(value) ? value.map((each) => plain(each)).join(" ") : plain(value);
}

const plain = (value) => String(typeof value === "number" ? Number(value.toPrecision(6)) : value);

function drawReadout() {
  const drive = state.drives[view.drives[0]];
  const columns = tracks[0].data?.columns ?? {};
  const frame = Math.min(view.frame, drive.frames - 1);
  const rest = [`${(view.frame / drive.frames_per_second).toFixed(2)} s`];
  if (columns.laps) rest.push(columns.laps[frame] < 128 ? "before the line" : `lap ${columns.laps[frame] - 127}`);
  if (columns.checkpoint && columns.laps) rest.push(`checkpoint ${columns.checkpoint[frame]}`);
  $("readout").replaceChildren(make("b", { textContent: `frame ${grouped(view.frame)}` }), make("span", { textContent: ` of ${grouped(frames() - 1)} · ${rest.join(" · ")}` }));
}

const chartX = (frame) => {
  const [from, to] = rangeShown();
  return (frame - from) / (to - from) * timeline.width;
};

/** Everything that depends on the cursor; at most once per picture of the screen. */
function drawCursor() {
  if (!state || !tracks.length) return;
  for (const box of $("pictures").children) drawPicture(box);
  const cursor = $("chart").querySelector(".cursor");
  const x = chartX(view.frame);
  cursor.style.transform = `translateX(${x}px)`;
  cursor.hidden = x < 0 || x > timeline.width;
  [["a", tracks[0]], ["b", view.drives[1] === null ? null : other()]].forEach(([name, track]) => {
    const dot = $("map").querySelector(`.dot.${name}`);
    dot.hidden = !(place && track && isNumbers(track, view.x) && isNumbers(track, view.y));
    if (dot.hidden) return;
    const frame = Math.min(view.frame, track.data.columns[view.x].length - 1);
    dot.style.transform = `translate(${place.x(track.data.columns[view.x][frame])}px, ${place.y(track.data.columns[view.y][frame])}px)`;
  });
  for (const { name, cells } of cursorCells) {
    tracks.forEach((track, index) => {
      const value = termOf(track, name)?.series(view.raw, view.summed)[view.frame];
      const text = value === undefined ? "–" : short(value);
      if (cells[index] && cells[index].textContent !== text) {
        cells[index].textContent = text;
        cells[index].className = value < 0 ? "negative" : value ? "" : "nothing";
      }
    });
  }
  drawRam();
  drawReadout();
  $("scrubber").value = view.frame;
}

let isDrawingSoon = false;

function drawSoon() {
  if (isDrawingSoon) return;
  isDrawingSoon = true;
  requestAnimationFrame(() => {
    isDrawingSoon = false;
    if ($("pictures").dataset.size !== String(pictureSize())) {
      $("pictures").dataset.size = String(pictureSize());
      drawAll();
    } else drawCursor();
  });
}

function drawAll() {
  if (!state) return;
  document.body.classList.toggle("two", view.drives[1] !== null);
  drawPictures();
  drawList();
  drawStatus();
  $("scrubber").max = frames() - 1;
  for (const id of ["summed", "raw"]) {
    for (const button of $(id).children) button.setAttribute("aria-pressed", String(Boolean(button.dataset.value) === view[id]));
  }
  drawTimeline();
  drawMap();
  drawSource();
  drawFindings();
  drawCursor();
}

function seek(frame) {
  view.frame = clamp(Math.round(frame), 0, frames() - 1);
  // The decoder begins now, not when the screen is drawn.
  for (const [drive, film] of films) film.picture(Math.min(view.frame, state.drives[drive].frames - 1));
  drawSoon();
}

function play(isPlaying) {
  if (isPlaying && view.frame >= frames() - 1) view.frame = 0;
  view.playing = isPlaying ? { start: performance.now(), frame: view.frame } : null;
  $("play").textContent = isPlaying ? "❚❚" : "▶";
  if (isPlaying) requestAnimationFrame(playOn);
}

function playOn(now) {
  if (!view.playing) return;
  const rate = Number($("rate").value) * state.drives[view.drives[0]].frames_per_second / 1000;
  const frame = view.playing.frame + Math.max(0, Math.floor((now - view.playing.start) * rate));
  seek(frame);
  if (frame >= frames() - 1) play(false);
  else requestAnimationFrame(playOn);
}

function step(difference) {
  play(false);
  seek(view.frame + difference);
}

function toMark(direction) {
  const marks = termOf(tracks[0], view.term)?.marks ?? [];
  const next = direction > 0 ? marks.find((frame) => frame > view.frame) : marks.findLast((frame) => frame < view.frame);
  play(false);
  if (next !== undefined) seek(next);
}

// ---------------------------------------------------------------------------------------------------- input

const KEYS = {
  ArrowLeft: (event) => step(event.shiftKey ? -60 : -1),
  ArrowRight: (event) => step(event.shiftKey ? 60 : 1),
  " ": () => play(!view.playing),
  Home: () => step(-Infinity),
  End: () => step(Infinity),
  p: () => toMark(-1),
  n: () => toMark(1),
};

addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  const digit = /^[0-9]$/.test(event.key) ? (Number(event.key) + 9) % 10 : null;
  const name = digit === null ? null : termNames().slice(0, -1)[digit];
  if (name) chooseTerm(name);
  else KEYS[event.key]?.(event);
  if (name || KEYS[event.key]) event.preventDefault();
});

$("back").onclick = () => step(-1);
$("forward").onclick = () => step(1);
$("play").onclick = () => play(!view.playing);
$("previous-mark").onclick = () => toMark(-1);
$("next-mark").onclick = () => toMark(1);
$("rate").onchange = () => play(Boolean(view.playing));
$("scrubber").oninput = () => { play(false); seek(Number($("scrubber").value)); };
for (const id of ["x", "y", "colour"]) $(id).onchange = () => { view[id] = $(id).value; drawMap(); drawSoon(); };
for (const id of ["summed", "raw"]) {
  for (const button of $(id).children) button.onclick = () => { view[id] = Boolean(button.dataset.value); drawAll(); };
}

$("map").addEventListener("click", (event) => {
  if (!place) return;
  const box = $("map").getBoundingClientRect();
  const frame = frameAt(event.clientX - box.left, event.clientY - box.top);
  if (frame !== null) step(frame - view.frame);
});

let pressed = null;

/** The frame at a place of the timeline; a click takes the term's mark if one is near. */
function chartFrame(event, isClick) {
  const box = $("chart").getBoundingClientRect();
  const [from, to] = rangeShown();
  const perPixel = (to - from) / box.width;
  const frame = from + (event.clientX - box.left) * perPixel;
  const name = timeline.names[Math.floor((event.clientY - box.top) / timeline.row)];
  const marks = (isClick && name && termOf(tracks[0], name)?.marks) || [];
  const nearest = marks.reduce((best, mark) => (Math.abs(mark - frame) < Math.abs(best - frame) ? mark : best), Infinity);
  if (isClick && name) chooseTerm(name);
  return Math.abs(nearest - frame) < 6 * perPixel ? nearest : frame;
}

const chart = $("chart");
chart.onpointerdown = (event) => {
  pressed = event.clientX;
  chart.setPointerCapture(event.pointerId);
};
chart.onpointermove = (event) => {
  if (pressed === null || Math.abs(event.clientX - pressed) < 3) return;
  play(false);
  pressed = NaN; // it is a drag from now on
  seek(chartFrame(event, false));
};
chart.onpointerup = (event) => {
  if (pressed !== null && !Number.isNaN(pressed)) {
    play(false);
    seek(chartFrame(event, true));
  }
  pressed = null;
};
chart.ondblclick = () => { view.range = null; drawTimeline(); drawSoon(); };

let isZooming = false;
chart.addEventListener("wheel", (event) => {
  if (!event.deltaY && !event.deltaX) return;
  if (event.ctrlKey || Math.abs(event.deltaY) >= Math.abs(event.deltaX)) {
    const [from, to] = rangeShown();
    const at = from + (event.clientX - chart.getBoundingClientRect().left) / timeline.width * (to - from);
    const width = clamp((to - from) * Math.exp(event.deltaY / 400), 20, frames());
    const start = clamp(at - (at - from) * width / (to - from), -0.5, frames() - 0.5 - width);
    view.range = width >= frames() ? null : [start, start + width];
  } else if (view.range) {
    const [from, to] = view.range;
    const shift = clamp(event.deltaX * (to - from) / timeline.width, -0.5 - from, frames() - 0.5 - to);
    view.range = [from + shift, to + shift];
  }
  event.preventDefault();
  if (isZooming) return;
  isZooming = true;
  requestAnimationFrame(() => { isZooming = false; drawTimeline(); drawSoon(); });
}, { passive: false });

new ResizeObserver(() => drawAll()).observe(document.querySelector("main"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());

// ---------------------------------------------------------------------------------------------------- start

// For the browser's console, and for tests.
window.lab = { view, seek, chartX, films, state: () => state, place: () => place, tracks: () => tracks };

(async () => {
  document.head.append(make("script", { textContent: await inflated(embeddedBytes("charts")).text() }));
  if (isEmbedded) {
    onState(JSON.parse(embedded.get("state").textContent));
    return;
  }
  const events = new EventSource("events");
  events.onmessage = (event) => onState(JSON.parse(event.data));
  events.onerror = () => {
    failure = "The server has ended. The page shows its last numbers.";
    if (state) drawStatus();
  };
})();
