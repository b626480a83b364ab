/** Challengers against the champion of their time: a small chart, and the same numbers as a table. */

import { el, svg } from "./dom.js";
import { shortDay } from "./time.js";

const SHOWN = 14;
const WIDTH = 300;
const HEIGHT = 148;
const LEFT = 34;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;
/** Outcomes of runs in words. */
export const WORDS = { promoted: "promoted", refused: "not promoted", votes: "waiting for votes", not_yet: "not yet", failed: "failed", cancelled: "cancelled" };

/** "+0.12", with a real minus. */
export const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}`;
const measured = (entry) => typeof entry.value === "number";

/** Oldest first, whatever order the API sent. */
const inTime = (history) => [...history].sort((a, b) => (a.finished_ms ?? 0) - (b.finished_ms ?? 0));

/** The chart; `pending` shows the place of the challenger that is being made. */
export function renderChart(history, pending) {
  const entries = inTime(history).filter(measured).slice(-SHOWN);
  if (!entries.length) {
    return el("p", { class: "faint chart-empty", text: "Each retraining adds a point here: how much likelier members are to like the challenger's replies than the champion's, with its confidence interval." });
  }
  const scale = scales(entries, pending);
  const slots = entries.length + (pending ? 1 : 0);
  const summary = `${entries.length} challengers, oldest to newest: ${entries.map((entry) => `${signed(entry.value)} ${WORDS[entry.outcome] ?? entry.outcome}`).join(", ")}.`;
  const picture = svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary },
    axis(scale),
    entries.map((entry, index) => point(entry, scale.x(index, slots), scale.y)),
    pending ? placeholder(scale.x(slots - 1, slots), scale.y(0)) : null,
    svg("text", { class: "chart-text", x: LEFT, y: HEIGHT - 5, text: entries.length > 1 ? "older" : "" }),
    svg("text", { class: "chart-text", x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end", text: pending ? "in the making" : "latest" }),
  );
  const latest = entries.at(-1);
  return [el("p", { class: "chart-latest" }, el("span", { class: "faint", text: "Latest: " }), describe(latest)), picture, legend()];
}

function scales(entries) {
  const values = entries.flatMap((entry) => [entry.low ?? entry.value, entry.high ?? entry.value, 0]);
  const [low, high] = [Math.min(...values, -0.02), Math.max(...values, 0.02)];
  const step = niceStep((high - low) / 3);
  const [from, to] = [Math.floor(low / step) * step, Math.ceil(high / step) * step];
  const ticks = [];
  for (let tick = from; tick <= to + step / 2; tick += step) ticks.push(Math.round(tick * 1e6) / 1e6);
  const inner = WIDTH - LEFT - RIGHT;
  return {
    ticks,
    y: (value) => TOP + ((to - value) / (to - from)) * (HEIGHT - TOP - BOTTOM),
    x: (index, slots) => LEFT + (inner * (index + 0.5)) / slots,
  };
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

function axis({ ticks, y }) {
  return ticks.flatMap((tick) => [
    svg("line", { class: tick === 0 ? "chart-zero" : "chart-grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }),
    svg("text", { class: "chart-text", x: LEFT - 6, y: y(tick) + 3, "text-anchor": "end", text: tick === 0 ? "0" : signed(tick) }),
  ]);
}

/** Shape as well as colour says the outcome: a filled disc was promoted, an open diamond was not, a square is open. */
function symbol(outcome, x, y) {
  if (outcome === "promoted") return svg("circle", { class: "chart-mark", cx: x, cy: y, r: 5 });
  if (outcome === "refused") return svg("path", { class: "chart-mark", d: `M${x} ${y - 6}l6 6-6 6-6-6Z` });
  return svg("rect", { class: "chart-mark", x: x - 4.2, y: y - 4.2, width: 8.4, height: 8.4 });
}

function outcomeClass(outcome) {
  return ["promoted", "refused"].includes(outcome) ? outcome : "undecided";
}

function point(entry, x, y) {
  const [low, high] = [y(entry.low ?? entry.value), y(entry.high ?? entry.value)];
  return svg(
    "g",
    { class: `chart-point is-${outcomeClass(entry.outcome)}` },
    svg("title", { text: `${(entry.adapter_id ?? "").slice(0, 8)} ${describe(entry)}`.trim() }),
    svg("rect", { class: "chart-reach", x: x - 9, y: TOP, width: 18, height: HEIGHT - TOP - BOTTOM }),
    svg("path", { class: "chart-whisker", d: `M${x} ${high}V${low}M${x - 4} ${high}h8M${x - 4} ${low}h8` }),
    symbol(entry.outcome, x, y(entry.value)),
  );
}

function placeholder(x, y) {
  return svg("g", { class: "chart-pending" }, svg("path", { d: `M${x} ${TOP}V${HEIGHT - BOTTOM}` }), svg("circle", { cx: x, cy: y, r: 5 }));
}

function describe(entry) {
  const interval = typeof entry.low === "number" ? ` (${signed(entry.low)} to ${signed(entry.high)})` : "";
  const on = entry.n ? ` on ${entry.n} conversations` : "";
  return `${signed(entry.value)}${interval}${on}: ${WORDS[entry.outcome] ?? entry.outcome}`;
}

function legend() {
  const sign = (outcome, words) => el("span", { class: `legend is-${outcome}` }, svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, symbol(outcome, 7, 7)), words);
  return el("p", { class: "chart-legend" }, sign("promoted", "promoted"), sign("refused", "not promoted"), sign("undecided", "undecided"), el("span", { class: "faint", text: "gain in the chance of a like, 0 to 1, over the champion then; bars: 95 % interval" }));
}

/** A link-like button that opens the report of a run. */
export const reportButton = (runId, openReport) => el("button", { type: "button", class: "link-button", text: "Report", "aria-label": `Open the report of run ${runId}`, on: { click: () => openReport(runId) } });

/** A second line of a cell: the panel is too narrow for a column of its own. */
const under = (text) => el("span", { class: "faint", text });

/** Every run as a table row, newest first; `openReport(runId)` shows its report. */
export function renderHistoryTable(history, openReport) {
  const entries = inTime(history).reverse();
  if (!entries.length) return null;
  const head = el("tr", {}, ["Run", "Gain in the chance of a like (95 % interval)", "Outcome"].map((title) => el("th", { scope: "col", text: title })));
  const rows = entries.map((entry) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", title: entry.message ?? entry.adapter_id }, el("span", { class: "adapter", text: (entry.adapter_id ?? entry.run_id ?? "–").slice(0, 8) }), entry.finished_ms ? under(shortDay(new Date(entry.finished_ms))) : null, reportButton(entry.run_id, openReport)),
      el("td", {}, measured(entry) ? signed(entry.value) : "–", typeof entry.low === "number" ? under(`${signed(entry.low)} to ${signed(entry.high)}`) : null),
      el("td", {}, WORDS[entry.outcome] ?? entry.outcome ?? "–", entry.n ? under(`on ${entry.n} conversations`) : null),
    ),
  );
  return el("details", { class: "table-alternative" }, el("summary", { text: "As a table" }), el("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "All runs" }, el("table", {}, el("caption", { class: "visually-hidden", text: "Every run, newest first" }), el("thead", {}, head), el("tbody", {}, rows))));
}
