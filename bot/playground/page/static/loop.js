/** The right panel: what the loop has collected, what it is doing, what came of it. */

import { renderChart, renderHistoryTable } from "./chart.js";
import { confirmDialog } from "./dialogs.js";
import { createDuels } from "./duels.js";
import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { createRehearsal } from "./rehearsal.js";
import { renderStrap } from "./strap.js";
import { duration, relative, stamp } from "./time.js";

const OUTCOMES = { promoted: "Promoted", refused: "Not promoted", not_yet: "Not yet", votes: "Waiting for votes", failed: "Failed", cancelled: "Cancelled" };
const KINDS = { promote: "promoted", rollback: "rolled back to", erase: "switched after an erasure to", initial: "started with" };
const EXCLUDED = {
  not_public: "in direct messages or channels that not everybody sees",
  incomplete: "failed, stopped or empty",
  deleted: "with a deleted message in their context",
  opted_out: "where somebody opted out",
  no_permission: "without Discord's recorded permission",
  no_consent: "where somebody has not opted in yet (/privacy)",
  recently_erased: "where somebody erased their data lately",
  no_eligible_rating: "whose raters have not opted in",
};

/** "a1b2c3…" or the base model, as people read it. */
export const adapterName = (id) => (id ? id.slice(0, 8) : "base model");

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
  const sample = el("button", { class: "button", type: "button" }, icon("tray"), el("span", { text: "Load sample community" }));
  sample.addEventListener("click", () => loadSample(actions, announce));
  const rehearse = el("button", { class: "button", type: "button" }, icon("people"), el("span", { text: "Rehearse…" }));
  rehearse.addEventListener("click", () => rehearsal.choose());
  const rollback = el("button", { class: "button is-small", type: "button" }, icon("undo"), el("span", { text: "Roll back" }));
  rollback.addEventListener("click", async () => {
    const sure = await confirmDialog({
      title: "Roll back?",
      body: "The previous champion answers again from the next reply on. Nothing is deleted.",
      confirm: "Roll back",
    });
    if (sure) await run("rollback");
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
      card("Ratings", [parts.ratings, parts.next, retrain], {}),
      card("No time to rate hundreds of replies?", [el("p", { class: "faint", text: "Both are simulated, labelled as such, and never leave this playground." }), el("div", { class: "button-row" }, sample, rehearse), rehearsal.progress], {}),
      duels.card,
      card("Side by side", parts.trials, { live: true }),
      card("Champion and challengers", [el("div", { class: "champion-row" }, parts.champion, rollback), parts.chart, parts.table], {}),
      card("Recent promotions", parts.promotions, {}),
      card("Left out of training", parts.excluded, {}),
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
    part("run", [loop.run, loop.last_run], () => runState(loop));
    part("ratings", [loop.ratings, loop.needs], () => ratings(loop));
    part("next", [loop.next_run, loop.ratings?.new_since_run, minute()], () => nextRun(loop));
    part("trials", loop.trials, () => trials(loop.trials ?? {}));
    part("champion", [loop.champion, minute()], () => champion(loop));
    part("chart", [loop.history, Boolean(loop.run)], () => renderChart(loop.history ?? [], Boolean(loop.run)));
    keepOpen(parts.table, () => part("table", loop.history, () => renderHistoryTable(loop.history ?? [])));
    part("promotions", [loop.promotions, minute()], () => promotions(loop.promotions ?? []));
    part("excluded", loop.excluded, () => excluded(loop.excluded ?? {}));
    retrain.disabled = Boolean(loop.run) || !store.connected;
    retrain.lastChild.textContent = loop.run ? "A run is on its way" : "Retrain now";
    rollback.disabled = !loop.champion?.id || !store.connected;
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

function card(title, content, { live = false }) {
  const id = `card-${title.replace(/\W+/g, "-").toLowerCase()}`;
  return el("section", { class: "card", "aria-labelledby": id }, el("h3", { id, text: title }), el("div", { class: "card-body", "aria-live": live ? "polite" : null }, content));
}

function keepOpen(part, render) {
  const open = part.querySelector("details")?.open;
  render();
  if (open) part.querySelector("details").open = true;
}

function serving({ loop, botOnline, connected, ready }) {
  const status = loop?.server?.status;
  const [tone, words] = !ready
    ? ["waiting", "Connecting…"]
    : !connected
      ? ["bad", "Not connected"]
      : status === "loading"
        ? ["waiting", "Loading the model…"]
        : status === "down"
          ? ["bad", "Model server down"]
          : !botOnline
            ? ["waiting", "Strop is connecting…"]
            : loop?.trainer_alive === false
              ? ["waiting", "Serving, trainer down"]
              : ["good", "Serving"];
  return el("p", { class: `status is-${tone}`, role: "status", title: loop?.server?.detail || null }, el("i", { "aria-hidden": "true" }), words);
}

function serverDetail(server) {
  if (!server?.detail || server.status === "ok") return null;
  return el("p", { class: "faint", dir: "auto", text: server.detail });
}

function meter(label, have, need) {
  const done = have >= need;
  return el(
    "div",
    { class: `meter ${done ? "is-done" : ""}` },
    el("p", {}, el("span", { text: label }), el("span", { class: "meter-count" }, done ? icon("check") : null, `${have} of ${need}`)),
    el("progress", { max: need, value: Math.min(have, need), "aria-label": `${label}: ${have} of ${need}` }),
  );
}

function figure(value, label) {
  return el("div", { class: "figure" }, el("dd", {}, String(value ?? 0)), el("dt", { text: label }));
}

function ratings({ ratings: counts = {}, needs = {} }) {
  return [
    el("dl", { class: "figures" }, figure(counts.liked, "liked"), figure(counts.disliked, "disliked"), figure(counts.corrections, "corrected"), figure(counts.raters, "raters")),
    needs.liked ? meter("Liked replies needed", needs.liked[0], needs.liked[1]) : null,
    needs.raters ? meter("Different raters needed", needs.raters[0], needs.raters[1]) : null,
  ];
}

function nextRun({ next_run: next, ratings: counts = {} }) {
  if (!next || (!next.at_ms && !next.after_ratings)) return null;
  const parts = [];
  if (next.at_ms) parts.push(relative(Math.max(0, next.at_ms - Date.now()) / 1000));
  const left = next.after_ratings ? Math.max(0, next.after_ratings - (counts.new_since_run ?? 0)) : 0;
  if (left) parts.push(`after ${left} more rating${left === 1 ? "" : "s"}`);
  return el("p", { class: "faint" }, `Next run by itself ${parts.join(", or ") || "soon"}.`);
}

const PHASES = { snapshot: "Taking the snapshot", train: "Training the challenger", evaluate: "Judging it on held-out conversations", decide: "Deciding", swap: "Swapping it in", votes: "Waiting for blind votes" };

function runState({ run, last_run: last }) {
  if (run) {
    const known = typeof run.progress === "number" && run.phase;
    const name = run.state === "queued" ? "Waiting for the trainer" : (PHASES[run.phase] ?? "Starting");
    return [
      el("p", { class: "run-phase" }, el("strong", { text: name }), run.eta_s ? el("span", { class: "faint", text: `${duration(run.eta_s)} left` }) : null),
      el("progress", { max: 1, value: known ? run.progress : null, "aria-label": name }),
      run.note ? el("p", { class: "faint", dir: "auto", text: run.note }) : null,
    ];
  }
  if (!last?.message && !last?.outcome) return null;
  return [
    el("p", { class: "run-phase" }, el("span", { class: `outcome is-${last.outcome}`, text: OUTCOMES[last.outcome] ?? last.outcome ?? "Finished" })),
    last.message ? el("p", { dir: "auto", text: last.message }) : null,
  ];
}

const TRIALS = { canary: "Canary", holdback: "The one before" };

/** Adapters that answer a share of new conversations: how many were rated, never which side is ahead. */
function trials(running) {
  const entries = Object.entries(running);
  if (!entries.length) return null;
  return entries.map(([kind, trial]) =>
    el(
      "div",
      { class: `trial is-${kind}` },
      el("p", {}, el("strong", { text: `${TRIALS[kind]}: ` }), el("span", { class: "adapter", title: trial.adapter_id, text: adapterName(trial.adapter_id) }), ` answers ${Math.round(trial.share * 100)} % of new conversations.`),
      el("p", { class: "faint", text: `Rated conversations: ${trial.rated[0]} by the newer, ${trial.rated[1]} by the older.${trial.needed ? ` About ${trial.needed} more needed.` : ""}` }),
    ),
  );
}

function champion({ champion: current }) {
  const id = current?.id ?? null;
  return el(
    "div",
    { class: "champion" },
    el("p", { class: "faint", text: "Answering now" }),
    el("p", { class: "champion-name" }, el("strong", { class: id ? "adapter" : "", title: id, text: id ? adapterName(id) : "The base model" })),
    id && current.since_ms ? el("p", { class: "faint", text: `since ${stamp(new Date(current.since_ms))}` }) : el("p", { class: "faint", text: "no adapter yet" }),
  );
}

function promotions(entries) {
  const shown = entries.filter((entry) => entry.kind !== "initial").slice(0, 6);
  if (!shown.length) return null;
  return el(
    "ol",
    { class: "promotions" },
    shown.map((entry) =>
      el(
        "li",
        { class: `is-${entry.kind}` },
        el("p", {}, el("span", { class: "adapter", title: entry.adapter_id, text: adapterName(entry.adapter_id) }), ` ${KINDS[entry.kind] ?? entry.kind}`.replace(/ to$/, "")),
        el("p", { class: "faint", dir: "auto" }, `${relative((entry.created_ms - Date.now()) / 1000)}${entry.reason ? ` · ${entry.reason}` : ""}`),
      ),
    ),
  );
}

function excluded(reasons) {
  const entries = Object.entries(reasons).filter(([, count]) => count > 0);
  if (!entries.length) return null;
  return el("ul", { class: "excluded" }, entries.map(([reason, count]) => el("li", {}, el("strong", { text: String(count) }), el("span", { dir: "auto", text: ` ${EXCLUDED[reason] ?? reason.replaceAll("_", " ")}` }))));
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
