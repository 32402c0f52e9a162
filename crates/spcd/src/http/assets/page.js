"use strict";
// Everything that comes from files, sources and the database goes in as text, never as markup.

const $ = (id) => document.getElementById(id);
const el = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined && text !== null) made.textContent = text;
  return made;
};

const STATUSES = ["error", "updating", "pending", "deleting", "ready", "disabled"];
const collator = new Intl.Collator(undefined, { numeric: true });
const number = new Intl.NumberFormat();

const state = {
  canAct: true,
  rows: new Map(),
  view: [],
  event: 0,
  etag: null,
  status: null,
  words: [],
  sort: "status",
  down: false,
  picked: null,
  open: null,
  dirty: new Set(),
  all: false,
  loaded: false,
  silence: 45000,
};

// ---- what a row says

const seconds = (time) => (time ? (Date.now() - Date.parse(time)) / 1000 : NaN);

function span(s) {
  if (!(s >= 0)) return s < 0 ? "now" : "–";
  if (s < 1) return "now";
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

function lasted(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10000) return `${(ms / 1000).toFixed(1)} s`;
  return span(ms / 1000);
}

const when = (time) => {
  const at = new Date(time);
  return Number.isNaN(at.getTime()) ? "" : at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
};

function health(row) {
  const h = row.health;
  if (!h) return ["unknown", "–"];
  if (h.held) return ["held", "held"];
  if (h.reachable === true) return ["reachable", h.latency_ms === null ? "✓" : `✓ ${lasted(h.latency_ms)}`];
  if (h.reachable === false) return ["unreachable", h.breaker === "closed" ? "✕ retrying" : "✕ lost"];
  return ["unknown", "–"];
}

function says(row) {
  if (row.error) return ["wrong", row.error];
  if (row.health && row.health.reachable === false && row.health.last_failure) return ["doubt", row.health.last_failure];
  if (row.warnings.length > 0) return ["doubt", row.warnings.join("; ")];
  return ["", row.file_name ? place(row) : ""];
}

// Where in full is in the details.
function place(row) {
  const file = row.file_name.slice(row.file_name.lastIndexOf("/") + 1);
  return row.start_line ? `${file}:${row.start_line}` : file;
}

const ago = (time) => {
  const since = span(seconds(time));
  // In one piece, also where a line is short.
  return `${when(time)} (${since === "now" ? since : `${since} ago`.replaceAll(" ", "\u00a0")})`;
};

const COLUMNS = [
  { key: "status", title: "Status", by: (row) => STATUSES.indexOf(row.status) },
  { key: "name", title: "Connection", by: (row) => row.connection_name },
  { key: "plugin", title: "Plugin", by: (row) => row.plugin },
  { key: "health", title: "Source", by: (row) => ["unreachable", "held", "unknown", "reachable"].indexOf(health(row)[0]) },
  { key: "tables", title: "Tables", by: (row) => -(row.table_count ?? -1), number: true },
  { key: "age", title: "Changed", by: (row) => -Date.parse(row.time_changed), number: true },
  { key: "says", title: "Error, warning or place", by: (row) => says(row)[1] || "\uffff" },
];

// ---- filter and sort

function text(row) {
  row.text ??= [row.connection_name, row.plugin, row.plugin_instance, row.status, row.error, row.file_name, row.type,
    ...row.warnings, ...row.connections, ...Object.entries(row.labels ?? {}).flat()].join("\n").toLowerCase();
  return row.text;
}

function refresh() {
  const { words, status } = state;
  const counts = new Map();
  const view = [];
  for (const row of state.rows.values()) {
    if (!words.every((word) => text(row).includes(word))) continue;
    counts.set(row.status, (counts.get(row.status) ?? 0) + 1);
    if (!status || row.status === status) view.push(row);
  }
  const column = COLUMNS.find((column) => column.key === state.sort);
  const keys = new Map(view.map((row) => [row, column.by(row)]));
  const turn = state.down ? -1 : 1;
  view.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    const order = typeof x === "number" ? x - y : collator.compare(x, y);
    return order ? order * turn : collator.compare(a.connection_name, b.connection_name);
  });
  state.view = view;
  drawCounts(counts);
  const [all, some] = [state.rows.size, view.length];
  $("shown").textContent = all === some ? `${number.format(all)} ${all === 1 ? "connection" : "connections"}` : `${number.format(some)} of ${number.format(all)}`;
  $("empty").hidden = some > 0 || !state.loaded;
  $("empty").textContent = all > 0 ? "Nothing matches." : "No connections yet: put a file *.spc into the config directory.";
  $("grid").setAttribute("aria-rowcount", String(some + 1));
  draw();
}

function drawCounts(counts) {
  const box = $("counts");
  const wanted = STATUSES.filter((status) => counts.has(status) || state.status === status);
  if (box.childElementCount !== wanted.length || wanted.some((status, at) => box.children[at].dataset.status !== status)) {
    box.replaceChildren(...wanted.map((status) => {
      const button = el("button");
      button.type = "button";
      button.dataset.status = status;
      const name = el("span", "status", status);
      name.dataset.status = status;
      button.append(name, el("b"));
      button.addEventListener("click", () => {
        state.status = state.status === status ? null : status;
        $("scroll").scrollTop = 0;
        refresh();
      });
      return button;
    }));
  }
  for (const button of box.children) {
    button.lastChild.textContent = number.format(counts.get(button.dataset.status) ?? 0);
    button.setAttribute("aria-pressed", String(state.status === button.dataset.status));
  }
}

// ---- the list: only the rows that are seen are there

const rowHeight = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row")) || 34;
const drawn = [];
let asked = false;

function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    paint();
  });
}

function paint() {
  const scroll = $("scroll");
  const height = rowHeight();
  const { view } = state;
  $("space").style.height = `${view.length * height}px`;
  const first = Math.max(0, Math.floor(scroll.scrollTop / height) - 4);
  const last = Math.min(view.length, Math.ceil((scroll.scrollTop + scroll.clientHeight) / height) + 4);
  while (drawn.length < last - first) {
    const row = makeRow();
    drawn.push(row);
    $("space").append(row);
  }
  while (drawn.length > last - first) drawn.pop().remove();
  for (let at = first; at < last; at++) fill(drawn[at - first], view[at], at, height);
  const picked = drawn.find((row) => row.getAttribute("aria-selected") === "true");
  if (picked) $("grid").setAttribute("aria-activedescendant", picked.id);
  else $("grid").removeAttribute("aria-activedescendant");
}

function makeRow() {
  const row = el("div", "row");
  row.setAttribute("role", "row");
  row.id = `row-${drawn.length}`;
  for (const { key, number } of COLUMNS) {
    const cell = el("span", number ? `${key} number` : key);
    cell.setAttribute("role", "gridcell");
    row.append(cell);
  }
  row.addEventListener("click", () => {
    state.picked = row.dataset.name;
    $("grid").focus({ preventScroll: true });
    show(row.dataset.name);
    draw();
  });
  return row;
}

function put(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}

function fill(element, row, at, height) {
  const [status, name, plugin, source, tables, age, note] = element.children;
  element.style.transform = `translateY(${at * height}px)`;
  element.dataset.name = row.connection_name;
  element.setAttribute("aria-rowindex", String(at + 2));
  element.setAttribute("aria-selected", String(row.connection_name === state.picked));
  put(status, row.status);
  status.dataset.status = row.status;
  put(name, row.connection_name);
  name.title = row.connection_name;
  put(plugin, row.type === "aggregator" ? "aggregator" : row.plugin);
  const [kind, words] = health(row);
  put(source, words);
  source.dataset.health = kind;
  source.title = kind;
  put(tables, row.table_count === null ? "–" : number.format(row.table_count));
  put(age, span(seconds(row.time_changed)));
  age.title = when(row.time_changed);
  const [tone, what] = says(row);
  note.className = `says ${tone}`;
  put(note, what.length > 300 ? `${what.slice(0, 300)}…` : what);
}

function pick(at) {
  const { view } = state;
  if (view.length === 0) return;
  const to = Math.max(0, Math.min(view.length - 1, at));
  state.picked = view[to].connection_name;
  const [scroll, height] = [$("scroll"), rowHeight()];
  if (to * height < scroll.scrollTop) scroll.scrollTop = to * height;
  else if ((to + 1) * height > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = (to + 1) * height - scroll.clientHeight;
  if (state.open) show(state.picked);
  draw();
}

// ---- one connection

let showing = 0;

async function show(name) {
  state.open = name;
  const turn = ++showing;
  const row = state.rows.get(name);
  $("detail").hidden = false;
  $("split").classList.add("open");
  const hash = `#${encodeURIComponent(name)}`;
  // Once, so that going back closes it and the next time leaves the page.
  if (location.hash !== hash) history[history.state ? "replaceState" : "pushState"]("opened", "", hash);
  if (row && $("detail").dataset.name !== name) drawDetail(row, null);
  try {
    const answer = await ask(`/api/v1/connections/${encodeURIComponent(name)}`);
    if (turn !== showing) return;
    if (answer.status === 404) drawGone(name);
    else if (answer.ok) {
      const { events, ...full } = await answer.json();
      if (turn === showing) drawDetail(full, events);
    }
  } catch {
    // The lamp says that the daemon is away.
  }
  draw();
}

// On a phone the details lie over all else, which then is out of reach for the keyboard, too.
const narrow = matchMedia("(max-width: 760px)");

function cover() {
  const covered = state.open !== null && narrow.matches;
  for (const part of document.querySelectorAll(".top, .tools, .list")) part.inert = covered;
  if (covered && !$("detail").contains(document.activeElement)) $("detail").querySelector("button")?.focus();
}

narrow.addEventListener("change", cover);

function hide() {
  showing++;
  state.open = null;
  $("detail").hidden = true;
  delete $("detail").dataset.name;
  $("split").classList.remove("open");
  cover();
  if (location.hash) history.replaceState(history.state, "", location.pathname);
  $("grid").focus({ preventScroll: true });
  draw();
}

function titled(name) {
  const header = el("header");
  const close = el("button", "quiet", "Close");
  close.type = "button";
  close.addEventListener("click", hide);
  header.append(el("h2", "", name), close);
  return header;
}

function drawGone(name) {
  $("detail").dataset.name = name;
  $("detail").replaceChildren(titled(name), el("p", "told", "There is no such connection any more."));
  cover();
}

function drawDetail(row, events) {
  const box = $("detail");
  const same = box.dataset.name === row.connection_name;
  const told = same ? box.querySelector(".told")?.textContent : "";
  box.dataset.name = row.connection_name;
  const line = el("p", "state");
  const status = el("span", "status", row.status);
  status.dataset.status = row.status;
  const source = el("span", "health", health(row)[1]);
  source.dataset.health = health(row)[0];
  line.append(status);
  if (health(row)[0] !== "unknown") line.append(source);
  const parts = [titled(row.connection_name), line];
  if (row.error) parts.push(el("pre", "text wrong", row.error));
  const h = row.health;
  if (h && h.reachable === false && h.last_failure) parts.push(el("pre", "text doubt", h.last_failure));
  for (const warning of row.warnings) parts.push(el("pre", "text doubt", warning));

  const buttons = el("div", "buttons");
  for (const [verb, title] of state.canAct ? [["refresh", "Refresh"], ["reconnect", "Reconnect"]] : []) {
    const button = el("button", "quiet", title);
    button.type = "button";
    button.dataset.verb = verb;
    button.addEventListener("click", () => act(row.connection_name, verb));
    buttons.append(button);
  }
  const message = el("p", "told", !state.canAct ? NO_TOKEN : told === NO_TOKEN ? "" : (told ?? ""));
  message.setAttribute("role", "status");
  parts.push(buttons, message);

  const facts = el("dl", "facts");
  const fact = (name, value, kind) => {
    if (value === null || value === undefined || value === "") return;
    const holder = el("dd", kind);
    if (value instanceof Node) holder.append(value);
    else holder.textContent = value;
    facts.append(el("dt", "", name), holder);
  };
  const chips = (texts) => {
    const list = el("ul", "chips");
    list.append(...texts.map((text) => el("li", "", text)));
    return list;
  };
  const lines = row.start_line ? `:${row.start_line}${row.end_line && row.end_line !== row.start_line ? `–${row.end_line}` : ""}` : "";
  fact("Written in", row.file_name ? `${row.file_name}${lines}` : null, "place");
  fact("Plugin", row.plugin_instance && row.plugin_instance !== row.plugin ? `${row.plugin} (${row.plugin_instance})` : row.plugin);
  if (row.type !== "plugin") fact("Type", row.type);
  if (row.connections.length > 0) fact("Connections", chips(row.connections));
  fact("Tables", row.table_count === null ? null : number.format(row.table_count));
  fact("Changed", ago(row.time_changed));
  fact("Last ready", row.last_ready ? ago(row.last_ready) : "never");
  const labels = Object.entries(row.labels ?? {});
  if (labels.length > 0) fact("Labels", chips(labels.map(([key, value]) => `${key} = ${value}`)));
  parts.push(facts);

  if (h && (h.last_checked || h.held)) {
    const before = facts.cloneNode(false);
    const put = (name, value) => {
      if (value !== null && value !== undefined) before.append(el("dt", "", name), el("dd", "", value));
    };
    put("Checked", h.last_checked ? ago(h.last_checked) : "never");
    if (h.latency_ms !== null) put("Answered in", `${h.latency_ms.toFixed(1)} ms`);
    if (h.attempts > 0) put("Failed", `${h.attempts} ${h.attempts === 1 ? "time" : "times"} in a row`);
    if (h.failed_at) put("Last failure", ago(h.failed_at));
    if (h.next_attempt && !h.held) put("Next attempt", when(h.next_attempt));
    if (h.breaker !== "closed") put("Breaker", h.breaker === "open" ? "open" : "half open");
    if (h.held) put("Held", "nothing is asked until it is reconnected");
    parts.push(el("h3", "", "Source"), before);
  }

  if (events && events.length > 0) {
    const times = el("ol", "times");
    for (const event of events) {
      const item = el("li");
      item.dataset.status = event.health ? { lost: "error", restored: "ready" }[event.health] : event.status;
      const what = el("div", "what");
      const to = el("span", "", event.health ? `source ${event.health}` : event.status);
      const time = el("time", "", when(event.time));
      time.dateTime = event.time;
      what.append(to, time);
      if (!event.health && event.previous && event.duration_ms > 0) what.append(el("span", "after", `after ${lasted(event.duration_ms)} ${event.previous}`));
      item.append(what);
      if (event.error) item.append(el("div", "why", event.error));
      times.append(item);
    }
    parts.push(el("h3", "", "Events"), times);
  }
  if (same) renew(box, parts);
  else {
    box.replaceChildren(...parts);
    box.scrollTop = 0;
  }
  cover();
}

// Unchanged elements stay: a user may be about to copy or press one.
function renew(box, parts) {
  const [keep, old] = [box.scrollTop, [...box.children]];
  let at = 0;
  for (const part of parts) {
    const found = old.findIndex((one, index) => index >= at && one.isEqualNode(part));
    if (found < 0) {
      box.insertBefore(part, old[at] ?? null);
      continue;
    }
    while (at < found) old[at++].remove();
    at++;
  }
  while (at < old.length) old[at++].remove();
  box.scrollTop = keep;
}

async function act(name, verb) {
  const tell = (text) => {
    const told = $("detail").dataset.name === name ? $("detail").querySelector(".told") : null;
    if (told) told.textContent = text;
  };
  tell("asking …");
  const path = `/api/v1/connections/${encodeURIComponent(name)}/${verb}`;
  try {
    let answer = await ask(path, { method: "POST" });
    if (answer.status === 401 && (await askToken())) answer = await ask(path, { method: "POST" });
    if (answer.ok) tell(verb === "refresh" ? "The source will be asked again." : "spcd will try again.");
    else tell((await answer.json().catch(() => ({}))).error ?? `It was refused (${answer.status}).`);
  } catch {
    tell("The daemon cannot be reached.");
  }
}

// ---- talking to the daemon

const TOKEN = "spcd-token";
const NO_TOKEN = "To refresh or reconnect from this page, set http_token_file.";

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  try {
    return await fetch(path, { cache: "no-cache", ...options, headers });
  } catch {
    throw new Error("The daemon cannot be reached. What is shown is the last that was known.");
  }
}

let asking = null;

function askToken() {
  asking ??= new Promise((done) => {
    const dialog = $("ask");
    dialog.returnValue = "";
    $("token").value = "";
    dialog.addEventListener("close", () => {
      const token = $("token").value.trim();
      const given = dialog.returnValue === "yes" && token !== "";
      if (given) sessionStorage.setItem(TOKEN, token);
      asking = null;
      done(given);
    }, { once: true });
    // Not a button that submits: Enter presses the first of those.
    $("ask-cancel").onclick = () => dialog.close("no");
    dialog.showModal();
    $("token").focus();
  });
  return asking;
}

async function load() {
  const headers = state.etag ? { "If-None-Match": state.etag } : {};
  const answer = await ask("/api/v1/connections", { headers, cache: "no-store" });
  state.canAct = answer.headers.get("Spcd-Actions") !== "off";
  if (answer.status === 304) return;
  if (answer.status === 401) {
    if (await askToken()) return load();
    throw new Error("the token is needed");
  }
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({}));
    throw new Error(error ?? `status ${answer.status}`);
  }
  const { event, connections } = await answer.json();
  state.etag = answer.headers.get("ETag");
  state.event = Math.max(state.event, event);
  state.rows = new Map(connections.map((row) => [row.connection_name, row]));
  state.loaded = true;
  refresh();
  requestAnimationFrame(() => {
    performance.mark("ready");
    document.body.dataset.ready = "true";
  });
}

// What changed is read anew, a moment later, so that a pass over thousands is one list and not
// thousands of rows.
let due = 0;

function later() {
  if (due) return;
  due = setTimeout(async () => {
    due = 0;
    const names = [...state.dirty];
    const all = state.all || names.length > 20;
    state.dirty.clear();
    state.all = false;
    try {
      if (all) await load();
      else {
        await Promise.all(names.map(reread));
        refresh();
      }
      banner("");
    } catch (error) {
      state.all = true;
      banner(error.message);
      setTimeout(later, 2000);
    }
    if (state.open && (all || names.includes(state.open))) show(state.open);
  }, 120);
}

async function reread(name) {
  const answer = await ask(`/api/v1/connections/${encodeURIComponent(name)}`);
  if (answer.status === 404) state.rows.delete(name);
  else if (answer.ok) {
    const { events, ...row } = await answer.json();
    state.rows.set(name, row);
  } else throw new Error((await answer.json().catch(() => ({}))).error ?? `status ${answer.status}`);
}

function heard(kind, data) {
  if (kind === "hub") {
    if (!data.reachable) {
      lamp("off", "waiting for the database");
      banner("The database cannot be reached. What is shown is the last that was known.");
    } else {
      lamp("on", "live");
      banner("");
      state.all = true;
      later();
    }
    return;
  }
  if (kind === "resync" || kind === "open") {
    state.event = data.event;
    if (kind === "resync") {
      state.etag = null;
      state.all = true;
      later();
    }
    return;
  }
  if (kind !== "change") return;
  state.event = data.event;
  const row = state.rows.get(data.connection);
  if (data.status === "deleted") state.rows.delete(data.connection);
  else if (row) {
    row.status = data.status;
    row.error = data.error;
    if (!data.health) row.time_changed = data.time;
    row.text = undefined;
  }
  state.dirty.add(data.connection);
  later();
  soon();
}

let coming = false;

function soon() {
  if (coming) return;
  coming = true;
  setTimeout(() => {
    coming = false;
    refresh();
  }, 60);
}

function lamp(kind, text) {
  $("live").dataset.state = kind;
  put($("live-text"), text);
}

function banner(text) {
  $("banner").hidden = !text;
  put($("banner"), text);
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// A stream by fetch, since an EventSource cannot show a token.
async function follow() {
  for (let times = 0; ; times++) {
    // The daemon sends a sign of life every 15 s. A longer silence means that the connection is lost,
    // even without an error: the network failed, or the machine slept.
    const silent = new AbortController();
    let silence = 0;
    const wait = () => {
      clearTimeout(silence);
      silence = setTimeout(() => silent.abort(), state.silence);
    };
    try {
      wait();
      const answer = await ask(`/api/v1/events?since=${state.event}`, { cache: "no-store", signal: silent.signal });
      if (answer.status === 401 && !(await askToken())) {
        lamp("off", "not allowed");
        return;
      }
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      lamp("on", "live");
      times = 0;
      for (let rest = ""; ;) {
        const { done, value } = await reader.read();
        if (done) break;
        wait();
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          let [kind, data] = ["message", ""];
          for (const line of block.split("\n")) {
            if (line.startsWith("event: ")) kind = line.slice(7);
            else if (line.startsWith("data: ")) data += line.slice(6);
          }
          if (data) heard(kind, JSON.parse(data));
        }
      }
    } catch {
      // Said below.
    }
    clearTimeout(silence);
    lamp("off", "trying to reach the daemon");
    await pause(Math.min(5000, 250 * 2 ** Math.min(times, 5)) * (0.5 + Math.random() / 2));
    state.all = true;
    later();
  }
}

async function begin() {
  for (;;) {
    try {
      await load();
      banner("");
      break;
    } catch (error) {
      banner(error.message);
      lamp("off", "trying to reach the daemon");
      await pause(1000);
    }
  }
  if (location.hash.length > 1) fromHash();
  follow();
}

// ---- hands

function fromHash() {
  let name = "";
  try {
    name = decodeURIComponent(location.hash.slice(1));
  } catch {
    return;
  }
  if (!name && state.open) hide();
  if (name && name !== state.open) {
    state.picked = name;
    show(name);
  }
}

function drawHead() {
  $("head").replaceChildren(...COLUMNS.map((column) => {
    const cell = el("span", column.number ? "number" : "");
    cell.setAttribute("role", "columnheader");
    const mine = state.sort === column.key;
    if (mine) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const button = el("button", "", mine ? `${column.title} ${state.down ? "↓" : "↑"}` : column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      sortBy(column.key, state.sort === column.key && !state.down);
      $("head").children[COLUMNS.indexOf(column)].firstChild.focus();
    });
    cell.append(button);
    return cell;
  }));
  $("sort").value = state.sort;
  $("turn").textContent = state.down ? "↓" : "↑";
}

function sortBy(key, down) {
  state.sort = key;
  state.down = down;
  $("scroll").scrollTop = 0;
  drawHead();
  refresh();
}

$("sort").append(...COLUMNS.map(({ key, title }) => new Option(title, key)));
$("sort").addEventListener("change", () => sortBy($("sort").value, false));
$("turn").addEventListener("click", () => sortBy(state.sort, !state.down));

$("filter").addEventListener("input", () => {
  state.words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  $("scroll").scrollTop = 0;
  refresh();
});

$("scroll").addEventListener("scroll", draw, { passive: true });
new ResizeObserver(draw).observe($("scroll"));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("ask").open) return;
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("filter").focus();
    $("filter").select();
    return;
  }
  if (event.key === "Escape") {
    if (typing && $("filter").value) {
      $("filter").value = "";
      $("filter").dispatchEvent(new Event("input"));
    } else if (state.open) hide();
    else if (typing) $("grid").focus();
    return;
  }
  if (event.target.tagName === "SELECT" || event.target.closest?.("#detail")) return;
  const at = state.view.findIndex((row) => row.connection_name === state.picked);
  const page = Math.max(1, Math.floor($("scroll").clientHeight / rowHeight()) - 1);
  const to = {
    ArrowDown: at + 1,
    ArrowUp: at < 0 ? 0 : at - 1,
    PageDown: Math.max(at, 0) + page,
    PageUp: at - page,
    Home: typing ? undefined : 0,
    End: typing ? undefined : state.view.length - 1,
  }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    if (typing) $("grid").focus({ preventScroll: true });
    pick(to);
  } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
    // Else the button that gets the focus is pressed by the same key.
    event.preventDefault();
    if (at < 0) pick(0);
    if (state.picked) show(state.picked);
  }
});

window.addEventListener("hashchange", fromHash);

const THEMES = ["auto", "light", "dark"];
const THEME = "spcd-theme";

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[name];
  $("theme").setAttribute("aria-label", `Colours: ${{ auto: "as the system has them", light: "light", dark: "dark" }[name]}`);
}

let chosen = THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto";
theme(chosen);
$("theme").addEventListener("click", () => {
  chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
  localStorage.setItem(THEME, chosen);
  theme(chosen);
});

// Ages grow, and probes change what nothing announces.
setInterval(() => {
  if (!document.hidden) draw();
}, 5000);
setInterval(() => {
  if (document.hidden || !state.loaded) return;
  state.all = true;
  later();
}, 30000);

drawHead();
begin();
