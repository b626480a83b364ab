/** The right panel: what the loop has collected, what it is doing, what came of it. */

import { renderChart, renderHistoryTable } from "./chart.js";
import { confirmDialog } from "./dialogs.js";
import { call } from "./connection.js";
import { createDuels } from "./duels.js";
import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { openImports } from "./imports.js";
import { card, champion, excluded, nextRun, promotions, ratings, runState, serverDetail, serving, trials } from "./loop_parts.js";
import { createRehearsal } from "./rehearsal.js";
import { openReport } from "./report_tab.js";
import { renderStrap } from "./strap.js";

/** Mounts the panel. `actions` calls the playground, `leave()` closes a drawer, `announce(sentence)` shows a toast. */
export function mountLoop(store, actions, { leave, announce }) {
  const panel = document.getElementById("loop");
  const parts = Object.fromEntries(
    ["serving", "detail", "strap", "run", "ratings", "next", "trials", "champion", "chart", "table", "promotions", "excluded"].map((name) => [name, el("div", { class: `loop-${name}` })]),
  );
  const rehearsal = createRehearsal(actions, announce);
  const duels = createDuels(store, actions);
  const run = async (name) => {
    const done = await actions.command(name);
    // The bot's answer comes in the channel: on a phone the drawer would hide it.
    if (done !== undefined) leave();
  };

  const retrain = el("button", { class: "button is-primary is-wide", type: "button", id: "retrain" }, icon("loop"), el("span", { text: "Retrain now" }));
  retrain.addEventListener("click", () => run("retrain"));
  const forbidden = el("p", { class: "faint", hidden: true, text: "Only an operator retrains and rolls back: act as one, at the bottom left." });
  const sample = el("button", { class: "button", type: "button" }, icon("tray"), el("span", { text: "Load sample community" }));
  sample.addEventListener("click", () => loadSample(actions, announce));
  const rehearse = el("button", { class: "button", type: "button" }, icon("people"), el("span", { text: "Rehearse…" }));
  rehearse.addEventListener("click", () => rehearsal.choose());
  const bring = el("button", { class: "button is-wide", type: "button" }, icon("file"), el("span", { text: "Import a file…" }));
  bring.addEventListener("click", () => openImports(actions, announce));
  const rollback = el("button", { class: "button is-small", type: "button" }, icon("undo"), el("span", { text: "Roll back" }));
  rollback.addEventListener("click", async () => {
    const sure = await confirmDialog({
      title: "Roll back?",
      body: "The previous champion answers again from the next reply on. Nothing is deleted.",
      confirm: "Roll back",
    });
    if (sure) await run("rollback");
  });

  const startOver = el("button", { class: "button", type: "button" }, icon("undo"), el("span", { text: "Empty the chat…" }));
  startOver.addEventListener("click", async () => {
    const sure = await confirmDialog({
      title: "Empty the chat?",
      body: "Every channel becomes empty, and Strop begins afresh in it. Ratings, runs and adapters stay, and so does what they were made from: /privacy delete erases a member's. To begin with nothing at all, stop Strop and remove its data folder.",
      confirm: "Empty it",
      danger: true,
    });
    if (sure && (await actions.startOver()) !== undefined) leave();
  });

  const close = el("button", { class: "icon-button loop-close", type: "button", "aria-label": "Close the loop panel" }, icon("close"));
  close.addEventListener("click", leave);
  fill(
    panel,
    el("header", { class: "loop-head" }, el("h2", { text: "The loop" }), parts.serving, close),
    el(
      "div",
      { class: "loop-scroll" },
      parts.strap,
      parts.detail,
      card("Run", parts.run, { live: true }),
      card("Ratings", [parts.ratings, parts.next, retrain, forbidden], {}),
      card("No time to rate hundreds of replies?", [el("p", { class: "faint", text: "Both are simulated, labelled as such, and never leave this playground." }), el("div", { class: "button-row" }, sample, rehearse), rehearsal.progress], {}),
      card("Conversations of your own?", [el("p", { class: "faint", text: "An operator brings them in from a file, and takes them back whole." }), bring], {}),
      duels.card,
      card("Side by side", parts.trials, { live: true }),
      card("Champion and challengers", [el("div", { class: "champion-row" }, parts.champion, rollback), parts.chart, parts.table], {}),
      card("Recent promotions", parts.promotions, {}),
      card("Left out of training", parts.excluded, {}),
      card("Start over", [el("p", { class: "faint", text: "An empty chat, with what was learned so far." }), startOver], {}),
    ),
  );

  const shown = new Map();
  const refresh = () => {
    const loop = store.loop;
    const part = (name, slice, render) => {
      const key = JSON.stringify(slice ?? null);
      if (shown.get(name) === key) return;
      shown.set(name, key);
      const content = render();
      fill(parts[name], content);
      const section = parts[name].closest(".card");
      if (section && ["run", "trials", "promotions", "excluded"].includes(name)) section.hidden = !content;
    };
    part("serving", [loop?.server, loop?.trainer_alive, store.botOnline, store.connected], () => serving(store));
    part("detail", loop?.server, () => serverDetail(loop?.server));
    if (!loop) return;
    part("strap", [loop.run?.phase, loop.run?.state, hasRatings(loop), loop.duels?.open], () => renderStrap(loop));
    part("run", [loop.run, loop.last_run, loop.needs, loop.history, loop.champion], () => runState(loop));
    part("ratings", [loop.ratings, loop.needs], () => ratings(loop));
    part("next", [loop.next_run, loop.ratings?.new_since_run, loop.needs, Boolean(loop.run), minute()], () => nextRun(loop));
    part("trials", loop.trials, () => trials(loop.trials ?? {}));
    part("champion", [loop.champion, loop.promotions, minute()], () => champion(loop));
    part("chart", [loop.history, Boolean(loop.run)], () => renderChart(loop.history ?? [], Boolean(loop.run)));
    keepOpen(parts.table, () => part("table", loop.history, () => renderHistoryTable(loop.history ?? [], (runId) => openReport(runId, makeReport))));
    part("promotions", [loop.promotions, minute()], () => promotions(loop.promotions ?? []));
    part("excluded", loop.excluded, () => excluded(loop.excluded ?? {}));
    const may = Boolean(store.actor?.operator);
    retrain.disabled = Boolean(loop.run) || !store.connected || !may;
    retrain.lastChild.textContent = loop.run ? "A run is on its way" : "Retrain now";
    rollback.disabled = !loop.champion?.id || !store.connected || !may;
    forbidden.hidden = may;
    bring.disabled = !store.connected || !may;
    rehearse.disabled = Boolean(loop.rehearsal?.running);
    rehearsal.refresh(loop.rehearsal);
    duels.refresh(loop.duels);
  };
  store.on("snapshot loop status actor", refresh);
  setInterval(refresh, 30_000);
}

/** Relative times are drawn again when the minute changes. */
const minute = () => Math.floor(Date.now() / 60_000);
const hasRatings = (loop) => (loop.ratings?.liked ?? 0) + (loop.ratings?.disliked ?? 0) > 0;

/** Let the playground make a report; resolves to its path. */
const makeReport = async (runId) => (await call("POST", `reports/${encodeURIComponent(runId)}`)).path;

function keepOpen(part, render) {
  const open = part.querySelector("details")?.open;
  render();
  if (open) part.querySelector("details").open = true;
}

async function loadSample(actions, announce) {
  const sure = await confirmDialog({
    title: "Load the sample community",
    body: "This adds about 230 rated replies by simulated members, made by a script, so that you can retrain at once instead of rating by hand. They are labelled as simulated and never used outside this playground. No run starts by itself: press Retrain when you like.",
    confirm: "Load it",
  });
  if (!sure) return;
  const loaded = await actions.loadSample();
  if (loaded !== undefined) announce(loaded.message ?? "The sample community is loaded. Retrain whenever you like.");
}
