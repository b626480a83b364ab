/** Ratings by week, with the weeks in which another adapter began to answer marked. */

import { el, svg } from "./dom.js";
import { shortDay } from "./time.js";

const WIDTH = 360;
const HEIGHT = 130;
const BOTTOM = 20;
const TOP = 18;
const WEEK_MS = 7 * 86_400_000;

/** A bar up for likes and one down for dislikes each week; the same numbers as a table below. */
export function renderWeeks({ weeks, changes }) {
  const first = weeks.findIndex((week) => week.liked + week.disliked > 0);
  if (first < 0) return el("p", { class: "faint", text: "Nobody has rated a reply yet." });
  const shown = weeks.slice(Math.max(0, Math.min(first, weeks.length - 8)));
  const most = Math.max(...shown.map((week) => Math.max(week.liked, week.disliked)), 1);
  const slot = WIDTH / shown.length;
  const middle = TOP + (HEIGHT - TOP - BOTTOM) / 2;
  const height = (count) => (count / most) * (middle - TOP);
  const marks = shown.map((week) => changes.filter((each) => each.at_ms >= week.from_ms && each.at_ms < week.from_ms + WEEK_MS));
  const bars = shown.flatMap((week, index) => {
    const x = index * slot + slot * 0.2;
    const label = `${shortDay(new Date(week.from_ms))}: ${week.liked} liked, ${week.disliked} disliked`;
    return [
      svg("rect", { class: "dash-bar", x, y: middle - height(week.liked), width: slot * 0.6, height: height(week.liked) }, svg("title", { text: label })),
      svg("rect", { class: "dash-bar is-disliked", x, y: middle, width: slot * 0.6, height: height(week.disliked) }, svg("title", { text: label })),
      marks[index].length ? svg("line", { class: "dash-change", x1: index * slot + slot / 2, x2: index * slot + slot / 2, y1: TOP - 6, y2: HEIGHT - BOTTOM }, svg("title", { text: marks[index].map(named).join(", ") })) : null,
      marks[index].length ? svg("text", { class: "chart-text", x: index * slot + slot / 2, y: TOP - 8, "text-anchor": "middle", text: "▲" }) : null,
    ];
  });
  const summary = shown.map((week) => `${shortDay(new Date(week.from_ms))}: ${week.liked} liked, ${week.disliked} disliked`).join("; ");
  const ends = [svg("text", { class: "chart-text", x: 2, y: HEIGHT - 6, text: shortDay(new Date(shown[0].from_ms)) }), svg("text", { class: "chart-text", x: WIDTH - 2, y: HEIGHT - 6, "text-anchor": "end", text: "this week" })];
  return [
    svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Ratings by week. ${summary}` }, svg("line", { class: "chart-zero", x1: 0, x2: WIDTH, y1: middle, y2: middle }), bars, ends),
    el("p", { class: "faint", text: `Up: liked, down: disliked, at most ${most} in a week. ▲: another adapter began to answer.` }),
    table(shown, marks),
  ];
}

const named = (change) => `${(change.adapter_id ?? "base model").slice(0, 10)} (${change.kind})`;
const percent = (share) => `${Math.round(share * 100)} %`;

function table(weeks, marks) {
  const head = el("tr", {}, ["Week from", "Liked", "Disliked", "Share of likes, 95 % interval", "Began to answer"].map((title) => el("th", { scope: "col", text: title })));
  const rows = weeks
    .map((week, index) => el("tr", {}, el("th", { scope: "row", text: shortDay(new Date(week.from_ms)) }), el("td", { text: String(week.liked) }), el("td", { text: String(week.disliked) }), el("td", { text: week.share === null ? "–" : `${percent(week.share)} (${percent(week.low)} to ${percent(week.high)})` }), el("td", { text: marks[index].map(named).join(", ") || "–" })))
    .reverse();
  return el("details", { class: "table-alternative" }, el("summary", { text: "As a table" }), el("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "Ratings by week" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows))));
}
