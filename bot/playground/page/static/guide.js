/** First-run guidance: three steps that tick themselves off, and then get out of the way. */

import { el, fill, memory } from "./dom.js";
import { icon } from "./icons.js";
import { isComparison, isRateable } from "./store.js";

/** Outcomes of a run that went all the way; "not yet" asks for more ratings first. */
const JUDGED = ["promoted", "refused", "votes"];

/** Mounts the strip above the messages. `compose` and `list` are where its steps lead; `openLoop()` shows the panel. */
export function mountGuide(store, { compose, list, openLoop }) {
  const strip = document.getElementById("guide");
  let shown = "";

  const steps = () => [
    { title: "Say hello", done: botHasAnswered(store), go: () => compose.suggest("Hello! Who are you?") },
    {
      title: "Rate the answer",
      done: hasRated(store),
      go: () => list.focusLast((message) => isRateable(message, store)) || compose.focus(),
    },
    { title: "Retrain", done: JUDGED.includes(store.loop?.last_run?.outcome), go: openLoop },
  ];

  const dismiss = () => {
    memory.set("guide", "done");
    strip.hidden = true;
    compose.focus();
  };

  const refresh = () => {
    strip.hidden = !store.ready || memory.get("guide") === "done";
    if (strip.hidden) return;
    const now = steps();
    const key = now.map((step) => step.done).join();
    if (key === shown) return;
    shown = key;
    const complete = now.every((step) => step.done);
    const close = el("button", { class: "icon-button", type: "button", "aria-label": "Hide these steps", on: { click: dismiss } }, icon("close"));
    const next = now.findIndex((step) => !step.done);
    const items = now.map((step, index) => {
      const sign = el("span", { class: "step-sign", "aria-hidden": "true" }, step.done ? icon("check") : String(index + 1));
      const button = el("button", { type: "button", on: { click: step.go } }, sign, step.title, step.done ? el("span", { class: "visually-hidden" }, " (done)") : null);
      return el("li", { class: `${step.done ? "is-done" : ""} ${index === next ? "is-next" : ""}` }, button);
    });
    fill(strip, complete ? el("p", { text: "That was the whole loop. Keep rating: every run is judged before it may answer." }) : el("ol", { "aria-label": "First steps" }, items), close);
  };
  store.on("snapshot message loop channel actor", refresh);
}

function everyMessage(store) {
  return [...store.messages.values()].flat();
}

function botHasAnswered(store) {
  const people = new Set([...store.members.values()].filter((member) => !member.bot && !member.simulated).map((member) => member.id));
  const all = everyMessage(store);
  return all.some((message) => people.has(message.author.id)) && all.some((message) => isRateable(message, store) || isComparison(message));
}

function hasRated(store) {
  const people = new Set([...store.members.values()].filter((member) => !member.bot && !member.simulated).map((member) => member.id));
  const thumbs = (message) => message.reactions.filter((entry) => ["👍", "👎"].includes(entry.emoji.name));
  return everyMessage(store).some((message) => isRateable(message, store) && thumbs(message).some((entry) => entry.users.some((id) => people.has(id))));
}
