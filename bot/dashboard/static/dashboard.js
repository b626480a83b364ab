/** The operators' page: asks every few seconds how the loop stands, and shows the rest when it changes. */

import { renderChart, reportButton, signed, WORDS } from "./chart.js";
import { el, fill } from "./dom.js";
import { card, champion, excluded, nextRun, promotions, ratings, runState, serverDetail, serving, trials } from "./loop_parts.js";
import { toast } from "./notices.js";
import { openReport } from "./report_tab.js";
import { renderStrap } from "./strap.js";
import { duration, shortDay, stamp } from "./time.js";
import { renderWeeks } from "./weeks.js";

const REFRESH_MS = 5_000;
const TOKEN = "strop.dashboard.token";
const main = document.getElementById("main");
const embedded = document.querySelector('meta[name="dashboard-secret"]').content;
const state = { scope: "", rows: 0, runs: 0, shown: new Map(), parts: null };

class SignInError extends Error {}

/** Call the server; returns the parsed JSON. Throws an Error whose message is a sentence for people. */
async function call(method, path) {
  let response;
  try {
    response = await fetch(`/${path}`, { method, headers: { "X-Dashboard-Secret": embedded || sessionStorage.getItem(TOKEN) || "" } });
  } catch {
    throw new Error("The dashboard does not answer. Is `strop dashboard` still running?");
  }
  const value = await response.json().catch(() => null);
  if (response.status === 401) throw new SignInError(value?.error);
  if (!response.ok) throw new Error(value?.error ?? `The dashboard refused this (${response.status}).`);
  return value;
}

const query = (name, skip) => `api/${name}?scope=${encodeURIComponent(state.scope)}&skip=${skip}`;
const makeReport = async (runId) => (await call("POST", `api/reports/${encodeURIComponent(runId)}`)).path;

/** Draw a part anew only where what it shows has changed: a reader's place and focus stay. */
function part(name, slice, render) {
  const key = JSON.stringify(slice ?? null);
  if (state.shown.get(name) === key) return;
  state.shown.set(name, key);
  const content = render();
  fill(state.parts[name], content);
  const section = state.parts[name].closest(".card");
  if (section) section.hidden = !content || (Array.isArray(content) && !content.some(Boolean));
}

function build() {
  const names = ["alarms", "strap", "detail", "run", "ratings", "next", "champion", "trials", "promotions", "excluded", "weeks", "gains", "runs", "rows", "out"];
  state.parts = Object.fromEntries(names.map((name) => [name, el("div", { class: `loop-${name}` })]));
  state.shown.clear();
  const { alarms, strap, detail, run, ratings: given, next, champion: now, trials: beside, promotions: changes, excluded: left, weeks, gains, runs, rows, out } = state.parts;
  fill(
    main,
    el("div", { class: "dash-column" }, card("Alarms", alarms, { live: true }), strap, detail, card("Run", run, { live: true }), card("Ratings", [given, next]), card("Champion", now), card("Side by side", beside), card("Recent promotions", changes), card("Left out of training", left)),
    el("div", { class: "dash-column" }, card("Ratings by week", weeks), card("Challengers against their champions", gains), card("Runs", runs), card("What would train next", rows), card("Left out by hand", out)),
  );
}

function showLoop({ loop, scopes, alarms }) {
  const store = { loop, botOnline: true, connected: true, ready: true };
  fill(document.getElementById("serving"), serving(store));
  part("alarms", alarms, () => (alarms.length ? el("ul", { class: "dash-alarms" }, alarms.map((each) => el("li", { dir: "auto", text: each }))) : el("p", { class: "faint", text: "None." })));
  part("strap", [loop.run?.phase, loop.run?.state, loop.ratings, loop.duels], () => renderStrap(loop));
  part("detail", loop.server, () => serverDetail(loop.server));
  part("run", [loop.run, loop.last_run, loop.needs, loop.history, loop.champion], () => runState(loop) ?? el("p", { class: "faint", text: "No run yet." }));
  part("ratings", [loop.ratings, loop.needs], () => ratings(loop));
  part("next", [loop.next_run, loop.ratings, loop.needs, Boolean(loop.run), Math.floor(Date.now() / 60_000)], () => nextRun(loop));
  part("champion", [loop.champion, loop.promotions], () => champion(loop));
  part("trials", loop.trials, () => trials(loop.trials ?? {}));
  part("promotions", loop.promotions, () => promotions(loop.promotions ?? []));
  part("excluded", loop.excluded, () => excluded(loop.excluded ?? {}));
  part("gains", [loop.history, Boolean(loop.run)], () => renderChart(loop.history ?? [], Boolean(loop.run)));
  showScopes(scopes);
}

function showScopes(scopes) {
  const place = document.getElementById("scope");
  const key = JSON.stringify([scopes, state.scope]);
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  if (scopes.length < 2) return void fill(place, el("span", { class: "faint", text: state.scope }));
  const choice = el("select", { class: "select", "aria-label": "Community" }, scopes.map((name) => el("option", { value: name, selected: name === state.scope, text: name })));
  choice.addEventListener("change", () => {
    Object.assign(state, { scope: choice.value, rows: 0, runs: 0 });
    refresh();
  });
  fill(place, choice);
}

const COLUMNS = ["Run", "Outcome", "Gain in P(liked), 95 % interval", "Liked + disliked + corrected", "Time", "Processor time", "Memory", "Energy", "Steps"];
const ENERGY = COLUMNS.indexOf("Energy");

function cells(run) {
  const gain = run.gain ? `${signed(run.gain.value)}${typeof run.gain.low === "number" ? ` (${signed(run.gain.low)} to ${signed(run.gain.high)})` : ""}` : "–";
  const steps = run.steps === null ? "–" : run.planned_steps && run.planned_steps !== run.steps ? `${run.steps} of ${run.planned_steps}` : String(run.steps);
  return [
    WORDS[run.outcome] ?? run.state,
    gain,
    run.train ? `${run.train.liked} + ${run.train.disliked} + ${run.train.corrections}` : "–",
    run.seconds === null ? "–" : duration(run.seconds),
    run.cpu_s === null ? "–" : duration(run.cpu_s),
    run.peak_bytes ? `${(run.peak_bytes / 1e9).toFixed(1)} GB` : "–",
    run.energy_j === null ? "–" : `${(run.energy_j / 3600).toFixed(1)} Wh`,
    steps,
  ];
}

function runTable({ runs, count, skip }) {
  if (!count) return el("p", { class: "faint", text: "No run yet." });
  // Many machines don't count energy: there a column of dashes would say nothing.
  const shown = COLUMNS.map((_, index) => index).filter((index) => index !== ENERGY || runs.some((run) => run.energy_j !== null));
  const head = el("tr", {}, shown.map((index) => COLUMNS[index]).map((title) => el("th", { scope: "col", text: title })));
  const rows = runs.map((run) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", title: run.message, data: { title: COLUMNS[0] } }, el("span", {}, el("span", { class: "adapter", text: run.id.slice(0, 9) }), el("span", { class: "faint", text: stamp(new Date(run.started_ms ?? run.created_ms)) }), reportButton(run.id, (id) => openReport(id, makeReport)))),
      cells(run)
        .map((text, index) => el("td", { data: { title: COLUMNS[index + 1] }, text }))
        .filter((_, index) => shown.includes(index + 1)),
    ),
  );
  const table = el("table", { class: "dash-runs" }, el("caption", { class: "visually-hidden", text: "Runs, newest first" }), el("thead", {}, head), el("tbody", {}, rows));
  return [el("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "Runs" }, table), pager("runs", count, skip, runs.length)];
}

function pager(name, count, skip, shown) {
  if (count <= shown) return null;
  const turn = (text, to) => el("button", { class: "button is-small", type: "button", disabled: to === null, text, on: { click: () => ((state[name] = to), refresh()) } });
  return el("p", { class: "dash-pages" }, turn("Newer", skip > 0 ? Math.max(0, skip - 20) : null), el("span", { class: "faint", text: `${skip + 1} to ${skip + shown} of ${count}` }), turn("Older", skip + shown < count ? skip + 20 : null));
}

const SPLITS = { train: "to train on", development: "held out", gate: "held out" };

function nextRows({ rows, count, all, skip }, write) {
  const which = all ? "" : " of those rated lately";
  const lead = el("p", { class: "faint", text: count ? `${count} rated replies${which} may train, as of now, the latest first.` : `No rated reply${which} may train as of now.` });
  const list = rows.map((row) =>
    el(
      "article",
      { class: "dash-row", "aria-label": `Reply ${row.reply_id}` },
      el("div", {}, el("p", { class: "dash-prompt", dir: "auto", text: row.prompt }), el("p", { dir: "auto", text: row.reply }), el("p", { class: "faint", text: `${row.liked} liked, ${row.disliked} disliked${row.corrections ? `, ${row.corrections} corrected` : ""} · ${SPLITS[row.split] ?? row.split} · ${row.source} · ${shortDay(new Date(row.at_ms))}` })),
      write ? el("button", { class: "button is-small", type: "button", text: "Leave out", on: { click: () => change("PUT", row.reply_id) } }) : null,
    ),
  );
  return [lead, ...list, pager("rows", count, skip, rows.length)];
}

function leftOut(rows, write) {
  if (!rows.length) return null;
  return rows.map((row) =>
    el(
      "article",
      { class: "dash-row", "aria-label": `Reply ${row.reply_id}` },
      el("p", {}, el("span", { class: "adapter", text: row.reply_id }), el("span", { class: "faint", text: ` by ${row.actor}, ${stamp(new Date(row.at_ms))}` })),
      write ? el("button", { class: "button is-small", type: "button", text: "Put back", on: { click: () => change("DELETE", row.reply_id) } }) : null,
    ),
  );
}

async function change(method, replyId) {
  try {
    await call(method, `api/left-out/${encodeURIComponent(replyId)}`);
    toast(method === "PUT" ? "Left out of training. The audit log has it." : "Put back. The audit log has it.");
  } catch (error) {
    toast(error.message, "error");
  }
  await refresh();
}

function signIn() {
  const input = el("input", { type: "password", name: "token", autocomplete: "current-password", "aria-label": "Token", required: true });
  const form = el("form", { class: "dash-sign-in" }, el("h2", { text: "Sign in" }), el("p", { class: "faint", text: "This page is opened with the token that `strop dashboard` was given." }), input, el("button", { class: "button is-primary", type: "submit", text: "Open" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, input.value.trim());
    refresh(true);
  });
  state.parts = null;
  fill(main, form);
  input.focus();
}

let running = false;
let again = false;

async function refresh(signingIn = false) {
  if (running) return void (again = true);
  running = true;
  try {
    const found = await call("GET", `api/loop?scope=${encodeURIComponent(state.scope)}`);
    state.scope = found.scope;
    if (!state.parts) build();
    showLoop(found);
    const [weeks, runs, rows] = await Promise.all([call("GET", query("weeks", 0)), call("GET", query("runs", state.runs)), call("GET", query("rows", state.rows))]);
    part("weeks", weeks, () => renderWeeks(weeks));
    part("runs", runs, () => runTable(runs));
    part("rows", [rows, found.write], () => nextRows(rows, found.write));
    part("out", [rows.left_out, found.write], () => leftOut(rows.left_out, found.write));
  } catch (error) {
    if (error instanceof SignInError) {
      if (signingIn) toast("That is not the token.", "error");
      if (state.parts || !main.firstChild) signIn();
    } else if (state.parts) toast(error.message, "error");
    else fill(main, el("p", { class: "faint", role: "status", text: error.message }));
  } finally {
    running = false;
  }
  if (again) {
    again = false;
    await refresh();
  }
}

refresh();
setInterval(() => document.hidden || refresh(), REFRESH_MS);
