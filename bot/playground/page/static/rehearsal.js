/** Rehearse: simulated members chat with the real bot and rate by a taste that the visitor picks. */

import { openDialog } from "./dialogs.js";
import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { duration } from "./time.js";

/** `choose()` opens the taste picker; `progress` is the element of a rehearsal under way, fed by `refresh`. */
export function createRehearsal(actions, announce) {
  const progress = el("div", { class: "rehearsal", hidden: true });
  let last = null;

  const choose = async () => {
    const tastes = await actions.tastes();
    if (!tastes) return;
    const { form, closed } = openDialog({
      title: "Rehearse with a simulated community",
      wide: true,
      body: [
        el("p", { class: "faint", text: "Simulated members, always labelled, chat with the real bot and rate its replies by one taste. Then retrain, and see whether Strop has learned it." }),
        el("fieldset", { class: "tastes" }, el("legend", { class: "visually-hidden", text: "Taste" }), tastes.map(taste)),
      ],
      actions: [
        el("button", { class: "button", type: "submit", value: "", formnovalidate: true, text: "Cancel" }),
        el("button", { class: "button is-primary", type: "submit", value: "start", text: "Start rehearsing" }),
      ],
    });
    if ((await closed) !== "start") return;
    const key = new FormData(form).get("taste");
    if ((await actions.rehearse(key)) !== undefined) announce("The rehearsal has begun. You can watch it in the channel.");
  };

  const refresh = (state) => {
    const key = JSON.stringify(state ?? null);
    if (key === last) return;
    last = key;
    progress.hidden = !state;
    if (state) fill(progress, render(state, actions));
  };

  return { choose, progress, refresh };
}

function taste(entry, index) {
  const id = `taste-${index}`;
  return el(
    "label",
    { class: "taste", for: id },
    el("input", { type: "radio", name: "taste", id, value: entry.key, checked: entry.default ?? index === 0, required: true }),
    el("span", { class: "taste-title", dir: "auto", text: entry.title }),
    el("span", { class: "taste-about", dir: "auto", text: entry.description }),
    entry.example ? el("q", { class: "taste-example", dir: "auto", text: entry.example }) : null,
  );
}

function render(state, actions) {
  if (!state.running) return el("p", { class: "faint", dir: "auto", text: state.message || "The rehearsal has ended." });
  const stop = el("button", { class: "button is-small", type: "button" }, icon("close"), el("span", { text: "Stop" }));
  stop.addEventListener("click", () => actions.cancelRehearsal());
  return [
    el("p", { class: "run-phase" }, el("strong", { dir: "auto", text: "Rehearsing" }), state.eta_s ? el("span", { class: "faint", text: `${duration(state.eta_s)} left` }) : null),
    el("progress", { max: state.total || 1, value: state.total ? state.done : null, "aria-label": "Rehearsal" }),
    el("div", { class: "rehearsal-foot" }, el("span", { class: "faint", text: `${state.done} of ${state.total} rated · 👍 ${state.liked} 👎 ${state.disliked}` }), stop),
    state.message ? el("p", { class: "faint", dir: "auto", text: state.message }) : null,
  ];
}
