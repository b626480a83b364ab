/** What a loop's state says, part by part: the playground's panel and the operators' page both show these. */

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { duration, relative, stamp } from "./time.js";

const OUTCOMES = { promoted: "Promoted", refused: "Not promoted", not_yet: "Too little to train on", votes: "Waiting for votes", failed: "Failed", cancelled: "Cancelled" };
// What is said before the adapter's name, and behind it.
const KINDS = { promote: ["", " promoted"], rollback: ["rolled back to ", ""], erase: ["switched after an erasure to ", ""], initial: ["started with ", ""] };
const EXCLUDED = {
  not_public: "in direct messages or channels that not everybody sees",
  incomplete: "failed, stopped or empty",
  deleted: "with a deleted message in their context",
  opted_out: "where somebody opted out",
  no_permission: "without Discord's recorded permission",
  no_consent: "where somebody has not opted in yet (/privacy)",
  left_out: "left out by an operator",
  recently_erased: "where somebody erased their data lately",
  no_eligible_rating: "whose raters have not opted in",
};

/** "a1b2c3…" or the base model, as people read it. */
export const adapterName = (id) => (id ? id.slice(0, 8) : "base model");

/** One card of a page; a live one is read out when it changes. */
export function card(title, content, { live = false } = {}) {
  const id = `card-${title.replace(/\W+/g, "-").toLowerCase()}`;
  return el("section", { class: "card", "aria-labelledby": id }, el("h3", { id, text: title }), el("div", { class: "card-body", "aria-live": live ? "polite" : null }, content));
}

export function serving({ loop, botOnline, connected, ready }) {
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

export function serverDetail(server) {
  if (!server?.detail || server.status === "ok") return null;
  return el("p", { class: "faint", dir: "auto", text: server.detail });
}

function meter(label, have, need) {
  const done = have >= need;
  return el(
    "div",
    { class: `meter ${done ? "is-done" : ""}` },
    el("p", {}, el("span", { text: label }), el("span", { class: "meter-count" }, done ? icon("check") : null, `${have}, needed: ${need}`)),
    el("progress", { max: need, value: Math.min(have, need), "aria-label": `${label}: ${have}, needed: ${need}` }),
  );
}

function figure(value, label) {
  return el("div", { class: "figure" }, el("dd", {}, String(value ?? 0)), el("dt", { text: label }));
}

export function ratings({ ratings: counts = {}, needs = {} }) {
  return [
    el("dl", { class: "figures" }, figure(counts.liked, "likes"), figure(counts.disliked, "dislikes"), figure(counts.corrections, "corrections"), figure(counts.raters, "raters")),
    // A reply that three members like is one reply to train on, and three likes.
    needs.liked ? meter("Liked or corrected replies", needs.liked[0], needs.liked[1]) : null,
    needs.raters ? meter("Different raters", needs.raters[0], needs.raters[1]) : null,
  ];
}

/** Whether a run would have enough to train on now. */
const enough = ({ liked, raters } = {}) => Boolean(liked && raters) && liked[0] >= liked[1] && raters[0] >= raters[1];

/** When a run starts by itself, and what it takes: a clock alone starts none where nobody has rated anything since. */
export function nextRun({ next_run: next, ratings: counts = {}, needs, run }) {
  if (run || !next || (!next.at_ms && !next.after_ratings)) return null;
  const parts = [];
  const fresh = counts.new_since_run ?? 0;
  if (next.at_ms) parts.push(`${relative(Math.max(0, next.at_ms - Date.now()) / 1000)}${fresh ? "" : " if somebody has rated by then"}`);
  const left = next.after_ratings ? Math.max(0, next.after_ratings - fresh) : 0;
  if (left) parts.push(`after ${left} more rating${left === 1 ? "" : "s"}`);
  const lead = enough(needs) ? "There is enough to train on. " : "";
  return el("p", { class: "faint" }, `${lead}By itself a run starts ${parts.join(", or ") || "soon"}.`);
}

const PHASES = { snapshot: "Taking the snapshot", train: "Training the challenger", evaluate: "Judging it on held-out conversations", decide: "Deciding", swap: "Swapping it in", votes: "Waiting for blind votes" };

export function runState({ run, last_run: last, needs, history = [], champion: current }) {
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
  // What was too little then may be enough now: the meters say so, and this would contradict them.
  if (last.outcome === "not_yet" && enough(needs)) return null;
  return [
    el("p", { class: "run-phase" }, el("span", { class: `outcome is-${last.outcome}`, text: OUTCOMES[last.outcome] ?? last.outcome ?? "Finished" })),
    last.message ? el("p", { dir: "auto", text: last.message }) : null,
    last.outcome === "promoted" && replaced(last, history, current) ? el("p", { class: "faint", text: "It answers no more: another has taken its place since." }) : null,
  ];
}

/** Whether another answers now than the adapter that a run promoted. */
function replaced(run, history, current) {
  const past = history.find((entry) => entry.run_id === run.id);
  return Boolean(past?.adapter_id && current && current.id !== past.adapter_id);
}

const TRIALS = { canary: "Canary", holdback: "The one before" };

/** Adapters that answer a share of new conversations: how many were rated, never which side is ahead. */
export function trials(running) {
  const entries = Object.entries(running);
  if (!entries.length) return null;
  return entries.map(([kind, trial]) =>
    el(
      "div",
      { class: `trial is-${kind}` },
      el("p", {}, el("strong", { text: `${TRIALS[kind]}: ` }), el("span", { class: "adapter", title: trial.adapter_id, text: adapterName(trial.adapter_id) }), ` answers ${Math.round(trial.share * 100)} % of new conversations.`),
      el("p", { class: "faint", text: `Rated conversations: ${trial.rated[0]} of the newer adapter, ${trial.rated[1]} of the older.${trial.needed ? ` In half of all cases ${trial.needed[0]} to ${trial.needed[1]} more decide; this is reckoned anew with each.` : ""}` }),
    ),
  );
}

export function champion({ champion: current, promotions: changes = [] }) {
  const id = current?.id ?? null;
  const had = changes.some((change) => change.adapter_id);
  return el(
    "div",
    { class: "champion" },
    el("p", { class: "faint", text: "Answering now" }),
    el("p", { class: "champion-name" }, el("strong", { class: id ? "adapter" : "", title: id, text: id ? adapterName(id) : "The base model" })),
    id && current.since_ms ? el("p", { class: "faint", text: `since ${stamp(new Date(current.since_ms))}` }) : el("p", { class: "faint", text: had ? "again: /promote puts an adapter back" : "no adapter yet" }),
  );
}

export function promotions(entries) {
  const shown = entries.filter((entry) => entry.kind !== "initial").slice(0, 6);
  if (!shown.length) return null;
  return el(
    "ol",
    { class: "promotions" },
    shown.map((entry) =>
      el(
        "li",
        { class: `is-${entry.kind}` },
        el("p", {}, (KINDS[entry.kind] ?? ["", ""])[0], el("span", { class: entry.adapter_id ? "adapter" : "", title: entry.adapter_id, text: entry.adapter_id ? adapterName(entry.adapter_id) : "the base model" }), (KINDS[entry.kind] ?? ["", ` ${entry.kind}`])[1]),
        el("p", { class: "faint", dir: "auto" }, `${relative((entry.created_ms - Date.now()) / 1000)}${entry.reason ? ` · ${entry.reason}` : ""}`),
      ),
    ),
  );
}

export function excluded(reasons) {
  const entries = Object.entries(reasons).filter(([, count]) => count > 0);
  if (!entries.length) return null;
  return el("ul", { class: "excluded" }, entries.map(([reason, count]) => el("li", {}, el("strong", { text: String(count) }), el("span", { dir: "auto", text: ` ${EXCLUDED[reason] ?? reason.replaceAll("_", " ")}` }))));
}
