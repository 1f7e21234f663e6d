// The page of the server: asks its statistics every second, and sends the samples of the form.
// Text from the server is only ever put into text nodes.
import {
  added, areProbabilities, bytes, parseMetrics, percentile, short, single, sum,
} from "./metrics.js";
import { promptFields, readEvents, readPrompt } from "./texts.js";

const PERIOD = 1000, WINDOW = 10, POINTS = 120; // ms; polls; polls
const MOST_NUMBERS = 200000, SHOWN_ROWS = 4, SHOWN_NUMBERS = 64, SHOWN_BARS = 10;
const SHARES = [0.5, 0.95, 0.99];
const byId = (id) => document.getElementById(id);
const history = { rate: [], latency: [[], [], []], queue: [] };
const snapshots = [];
let latest = null, shownFor = "", writing = null;

// --- elements ---
function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function draw(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function bar(name, share, value) {
  const fill = make("div", { className: "fill" });
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return make("div", { className: "bar" }, make("span", {}, name),
    make("div", { className: "track" }, fill), make("span", {}, value));
}

function chart(id, series) {
  const svg = byId(id), width = svg.clientWidth || 300, height = svg.clientHeight || 96;
  const top = Math.max(1e-9, ...series.flat().filter((value) => value !== null));
  const left = 38, bottom = height - 4, high = 8;
  const x = (k, length) => left + ((width - left - 4) * (POINTS - length + k)) / (POINTS - 1);
  const y = (value) => bottom - ((bottom - high) * value) / top;
  const parts = [0, 0.5, 1].map((share) => draw("line",
    { class: "grid", x1: left, x2: width, y1: y(share * top), y2: y(share * top) }));
  for (const share of top > 1e-9 ? [0, 0.5, 1] : [0]) {
    parts.push(draw("text", { x: left - 5, y: y(share * top) + 3, "text-anchor": "end" },
      short(share * top, 2)));
  }
  series.forEach((values, number) => {
    let points = [];
    const finish = () => {
      if (points.length > 1) {
        parts.push(draw("polyline", { class: `s${number}`, points: points.join(" ") }));
      }
      points = [];
    };
    values.forEach((value, k) => {
      if (value === null) finish();
      else points.push(`${x(k, values.length).toFixed(1)},${y(value).toFixed(1)}`);
    });
    finish();
  });
  parts.push(draw("text", { x: left + 3, y: bottom - 3 }, "2 min ago"),
    draw("text", { x: width - 3, y: bottom - 3, "text-anchor": "end" }, "now"));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...parts);
}

// --- asking ---
async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(`../${path}`,
    { signal: AbortSignal.timeout(30000), ...options, headers });
  byId("login").hidden = answer.status !== 401;
  if (answer.ok) return answer;
  const text = await answer.text();
  let what = text.slice(0, 500) || `status ${answer.status}`;
  try { what = JSON.parse(text).error ?? what; } catch { /* it is not from this server */ }
  throw new Error(what);
}

const modelPath = (name, version) =>
  `v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;

/** The counters of all versions now. */
async function take() {
  const [index, stats, text] = await Promise.all([
    ask("v2/repository/index", { method: "POST" }).then((answer) => answer.json()),
    ask("v2/models/stats").then((answer) => answer.json()),
    ask("metrics").then((answer) => answer.text()),
  ]);
  const metrics = parseMetrics(text), models = new Map();
  for (const one of stats.model_stats) {
    const mine = (name) => (metrics.get(name) ?? []).filter(
      ({ labels }) => labels.model === one.name && labels.version === one.version);
    const buckets = mine("mpidl_request_duration_seconds_bucket");
    models.set(JSON.stringify([one.name, one.version]), {
      stats: one,
      limits: buckets.map(({ labels }) => (labels.le === "+Inf" ? Infinity : Number(labels.le))),
      totals: buckets.map(({ value }) => value),
      waiting: mine("nv_inference_pending_request_count")[0]?.value ?? 0,
      tokens: mine("mpidl_tokens_generated")[0]?.value ?? null,
    });
  }
  return { time: performance.now(), index, metrics, models };
}

/** What a version did between two snapshots. */
function compare(now, before, key) {
  const own = now.models.get(key), old = before?.models.get(key);
  const counts = ({ stats }) => stats.batch_stats.reduce(
    ([samples, batches], { batch_size: size, compute_infer: { count } }) =>
      [samples + size * count, batches + count], [0, 0]);
  const [inBatches, batches] = old ? added(counts(own), counts(old)) : [0, 0];
  const [samples] = old ? added([own.stats.inference_count], [old.stats.inference_count]) : [0];
  const totals = old ? added(own.totals, old.totals) : own.totals.map(() => 0);
  const seconds = before ? (now.time - before.time) / 1000 : 1;
  return { rate: samples / seconds, batch: batches ? inBatches / batches : null, totals, own };
}

const times = (limits, totals) =>
  SHARES.map((share) => percentile(limits, totals, share))
    .map((seconds) => (seconds === null ? null : 1000 * seconds));

// --- showing ---
function showState(text, kind) {
  const pill = byId("state");
  pill.textContent = text;
  pill.className = `pill ${kind}`;
}

function showHead(now) {
  const up = (now.metrics.get("mpidl_rank_up") ?? []).filter(({ value }) => value).length;
  const draining = single(now.metrics, "mpidl_draining");
  const all = now.index.length && now.index.every(({ state }) => state === "READY");
  showState(draining ? "stopping" : all ? "ready" : "not all models ready",
    draining || !all ? "wait" : "good");
  const age = single(now.metrics, "mpidl_uptime_seconds");
  const since = age < 120 ? `${Math.round(age)} s` : age < 7200 ? `${Math.round(age / 60)} min`
    : `${(age / 3600).toFixed(1)} h`;
  const held = single(now.metrics, "mpidl_pending_bytes");
  byId("about").textContent =
    `${up} rank${up === 1 ? "" : "s"}, up for ${since}, ${bytes(held)} of requests held`;
}

function showModels(now, before) {
  byId("models").replaceChildren(...now.index.map(({ name, version, state, reason }) => {
    const kind = { READY: "good", LOADING: "wait" }[state] ?? "bad";
    const cells = [make("td", {}, name), make("td", {}, version || "-"),
      make("td", {}, make("span", { className: `pill ${kind}` }, state))];
    const key = JSON.stringify([name, version]);
    if (now.models.has(key)) {
      const { rate, batch, totals, own } = compare(now, before, key);
      const { success, fail } = own.stats.inference_stats;
      const figures = [rate, ...times(own.limits, totals), own.waiting, batch, success.count];
      cells.push(...figures.map((figure) => make("td", {}, short(figure))),
        make("td", { className: fail.count ? "bad" : "" }, short(fail.count)));
    } else {
      cells.push(make("td", { className: "reason", colSpan: 8 }, reason || "not loaded"));
    }
    return make("tr", {}, ...cells);
  }));
}

function showCharts(now, before, long) {
  const keys = [...now.models.keys()];
  const recent = keys.map((key) => compare(now, before, key));
  const spans = keys.map((key) => compare(now, long, key));
  const limits = spans[0]?.own.limits ?? [];
  const found = times(limits, sum(spans.map(({ totals }) => totals)));
  const rate = recent.reduce((total, one) => total + one.rate, 0);
  const waiting = recent.reduce((total, one) => total + one.own.waiting, 0);
  const series = [[history.rate, rate], [history.queue, waiting],
    ...found.map((value, k) => [history.latency[k], value])];
  for (const [values, value] of series) {
    values.push(value ?? null);
    if (values.length > POINTS) values.shift();
  }
  chart("rate", [history.rate]);
  chart("latency", history.latency);
  chart("queue", [history.queue]);
  const tokens = keys.map((key) => [now.models.get(key).tokens, long?.models.get(key)?.tokens])
    .filter(([count]) => count !== null).map(([count, old]) => added([count], [old ?? count])[0]);
  const written = sum(tokens.map((count) => [count]))[0] / (long ? (now.time - long.time) / 1000 : 1);
  byId("rate-now").textContent = `${short(rate)} samples/s`
    + (tokens.length ? `, ${short(written)} tokens/s` : "");
  byId("queue-now").textContent = `${short(waiting)} waiting`;
  byId("latency-now").replaceChildren(...SHARES.flatMap((share, k) => [
    make("span", { className: `t${k}` }, `p${100 * share}`), ` ${short(found[k])} `]), "ms");
}

function showRanks(now) {
  const flying = new Map((now.metrics.get("mpidl_rank_messages_in_flight") ?? [])
    .map(({ labels, value }) => [labels.rank, value]));
  byId("ranks").replaceChildren(...(now.metrics.get("mpidl_rank_up") ?? []).map(
    ({ labels: { rank }, value }) => make("span", { className: value ? "rank" : "rank bad",
      title: value ? "" : "lost" }, `rank ${rank}: ${value ? flying.get(rank) ?? 0 : "lost"}`)));
}

function showBatches(now) {
  const batches = now.models.get(byId("chosen").value)?.stats.batch_stats ?? [];
  const counts = batches.map((one) => [one.batch_size, one.compute_infer.count]);
  const most = Math.max(1, ...counts.map(([, count]) => count));
  byId("batches").replaceChildren(...(counts.length
    ? counts.map(([size, count]) => bar(String(size), count / most, short(count)))
    : [make("small", {}, "none yet")]));
}

function showChoice(now) {
  const keys = [...now.models.keys()], select = byId("chosen");
  const same = keys.length === select.options.length
    && keys.every((key, k) => key === select.options[k].value);
  if (!same) {
    const old = select.value;
    select.replaceChildren(...keys.map((key) => make("option", { value: key },
      JSON.parse(key).join(", version "))));
    if (keys.includes(old)) select.value = old;
  }
  if (select.value !== shownFor) showForm();
}

async function poll() {
  if (!document.hidden || !latest) {
    try {
      const now = await take(), before = snapshots.at(-1), long = snapshots[0];
      latest = now;
      showHead(now);
      showModels(now, long);
      showCharts(now, before, long);
      showRanks(now);
      showChoice(now);
      showBatches(now);
      snapshots.push(now);
      if (snapshots.length > WINDOW) snapshots.shift();
    } catch (error) {
      showState(error instanceof TypeError ? "cannot be reached" : error.message, "bad");
    }
  }
  setTimeout(poll, PERIOD);
}

// --- the form ---
const count = (shape) => shape.slice(1).reduce((a, b) => a * Math.max(1, b), 1);

async function showForm() {
  const key = byId("chosen").value;
  shownFor = key;
  byId("outputs").replaceChildren();
  byId("took").textContent = "";
  byId("inputs").replaceChildren();
  if (!key) return;
  try {
    const path = modelPath(...JSON.parse(key));
    const [metadata, config] = await Promise.all([ask(path), ask(`${path}/config`)]
      .map(async (answer) => (await answer).json()));
    if (shownFor !== key) return;
    const texts = "generate" in config.parameters;
    byId("what").textContent = texts ? "Try a prompt" : "Try a sample";
    byId("inputs").replaceChildren(...(texts ? [promptFields(make)] : metadata.inputs.map(field)));
  } catch (error) {
    byId("took").textContent = error.message;
    shownFor = ""; // asks again
  }
}

function field(input) {
  const whole = !/^(FP|BF)/.test(input.datatype), length = count(input.shape);
  const area = make("textarea", { required: true, spellcheck: false,
    placeholder: `numbers of one or more samples, ${length} each, as JSON` });
  Object.assign(area.dataset, { name: input.name, datatype: input.datatype,
    shape: JSON.stringify(input.shape) });
  const below = make("input", { type: "number", min: 0, step: "any", value: whole ? 2 : 1,
    title: "random numbers lie below this" });
  const fill = (value) => {
    if (length > MOST_NUMBERS) byId("took").textContent = `${length} numbers are too many here`;
    else area.value = JSON.stringify(Array.from({ length }, value));
  };
  const random = () => {
    const value = Math.random() * Number(below.value);
    return whole ? Math.floor(value) : Number(value.toPrecision(4));
  };
  const button = (text, press) => make("button", { type: "button", onclick: press }, text);
  return make("div", {},
    make("div", { className: "row" }, make("b", {}, input.name),
      make("small", {}, `${input.datatype} [${input.shape.join(", ")}]`),
      button("zeros", () => fill(() => 0)), button("random", () => fill(random)), "below", below),
    area);
}

function readField(area) {
  const { name, datatype, shape } = area.dataset, text = area.value.trim();
  let data;
  try {
    data = JSON.parse(text.startsWith("[") ? text : `[${text}]`).flat(Infinity);
  } catch {
    throw new Error(`${name}: these are no numbers in JSON, such as [0, 1.5, 2]`);
  }
  const length = count(JSON.parse(shape)), rows = data.length / length;
  if (!Number.isInteger(rows) || !rows) {
    throw new Error(`${name}: ${data.length} numbers, but a sample has ${length}`);
  }
  return { name, datatype, shape: [rows, ...JSON.parse(shape).slice(1).map((n) => Math.max(1, n))],
    data };
}

function showOutput({ name, datatype, shape, data }) {
  const rows = shape[0] || 1, length = data.length / rows;
  const about = make("small", {}, `${datatype} [${shape.join(", ")}]`);
  const parts = [make("h3", {}, `${name} `, about)];
  for (let row = 0; row < Math.min(rows, SHOWN_ROWS); row += 1) {
    const values = data.slice(row * length, (row + 1) * length);
    if (rows > 1) parts.push(make("small", {}, `sample ${row}`));
    if (/^(FP|BF)/.test(datatype) && areProbabilities(values)) {
      const order = values.map((value, k) => [value, k]).sort((a, b) => b[0] - a[0]);
      parts.push(...order.slice(0, SHOWN_BARS).map(([value, k]) =>
        bar(`${k}`, value, `${(100 * value).toFixed(2)} %`)));
      if (values.length > SHOWN_BARS) {
        parts.push(make("small", {}, `and ${values.length - SHOWN_BARS} less likely ones`));
      }
    } else {
      const shown = values.slice(0, SHOWN_NUMBERS).map((v) =>
        (typeof v === "number" && !Number.isInteger(v) ? short(v, 6) : String(v)));
      const more = values.length > SHOWN_NUMBERS ? ` ... (${values.length} in all)` : "";
      parts.push(make("pre", {}, shown.join("  ") + more));
    }
  }
  if (rows > SHOWN_ROWS) parts.push(make("small", {}, `and ${rows - SHOWN_ROWS} more samples`));
  return make("div", { className: "output" }, ...parts);
}

async function sendSample(path) {
  const inputs = [...document.querySelectorAll("#inputs textarea")].map(readField);
  const answer = await ask(`${path}/infer`, { method: "POST", body: JSON.stringify({ inputs }),
    headers: { "content-type": "application/json" } });
  const found = await answer.json();
  byId("outputs").replaceChildren(...found.outputs.map(showOutput));
}

/** Shows a text as it is written; the button stops it. */
async function sendPrompt(path) {
  const request = readPrompt(byId("inputs")), shown = make("span", { className: "written" });
  byId("outputs").replaceChildren(make("pre", {}, request.text_input, shown));
  writing = new AbortController();
  byId("send").textContent = "Stop";
  byId("send").disabled = false;
  try {
    const answer = await ask(`${path}/generate_stream`, { method: "POST",
      body: JSON.stringify(request), headers: { "content-type": "application/json" },
      signal: writing.signal });
    for await (const part of readEvents(answer)) {
      shown.append(part.text_output);
      if (part.done) {
        const { finish_reason: reason, tokens, seed } = part.details;
        byId("outputs").append(make("small", {}, `${tokens} tokens, ${reason}, seed ${seed}`));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    byId("outputs").append(make("small", {}, "stopped"));
  } finally {
    writing = null;
    byId("send").textContent = "Run";
  }
}

async function send(event) {
  event.preventDefault();
  if (writing) {
    writing.abort();
    return;
  }
  byId("send").disabled = true;
  byId("took").className = "";
  byId("took").textContent = "...";
  const path = modelPath(...JSON.parse(shownFor)), start = performance.now();
  try {
    await (byId("prompt") ? sendPrompt(path) : sendSample(path));
    byId("took").textContent = `${short(performance.now() - start)} ms`;
  } catch (error) {
    byId("took").textContent = error.message;
    byId("took").className = "bad";
    byId("outputs").replaceChildren();
  }
  byId("send").disabled = false;
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("login").hidden = true;
});
byId("try").addEventListener("submit", send);
byId("chosen").addEventListener("change", () => { showForm(); if (latest) showBatches(latest); });
poll();
