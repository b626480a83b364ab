/** Blind votes: two answers to one prompt, and nobody knows which is the challenger's until they have voted. */

import { el, fill } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

const NO_NAMES = { member: () => null, channel: () => null };
const FIRST = 1;
const TIE = 0;
const SECOND = -1;

/** `card` is the section (hidden while there is nothing to vote on); `refresh(duels)` takes the loop's counts. */
export function createDuels(store, actions) {
  const body = el("div", { class: "card-body" });
  const card = el("section", { class: "card is-accented", "aria-labelledby": "duels-title", hidden: true }, el("h3", { id: "duels-title", text: "Which answer is better?" }), body);
  const voted = new Set();
  let waiting = [];
  let revealed = false;
  let seen = "";

  const load = async () => {
    const answer = await actions.duels();
    waiting = (answer?.duels ?? []).filter((duel) => !voted.has(`${store.actorId}/${duel.id}`));
    show();
  };

  const show = () => {
    revealed = false;
    card.hidden = !waiting.length;
    if (waiting.length) fill(body, ballot(waiting[0], vote, counts()));
  };

  const counts = () => {
    const { votes = 0, needed = null } = store.loop?.duels ?? {};
    return needed ? `Votes so far: ${votes}. Where one answer wins 7 times in 10, ${needed[0]} to ${needed[1]} decide in half of all cases; where they are closer it takes more` : `${votes} vote${votes === 1 ? "" : "s"} so far`;
  };

  const vote = async (duel, choice) => {
    const result = await actions.vote(duel.id, choice);
    // Refused: the pair may be over, so what is open is read anew.
    if (result === undefined) return load();
    voted.add(`${store.actorId}/${duel.id}`);
    waiting = waiting.filter((entry) => entry.id !== duel.id);
    revealed = true;
    const next = el("button", { class: "button is-wide", type: "button", text: waiting.length ? "Next pair" : "Done" });
    next.addEventListener("click", () => (waiting.length ? show() : load()));
    fill(body, verdict(duel, choice, result), next);
    next.focus();
  };

  store.on("actor", () => store.loop?.duels?.open && load());

  return {
    card,
    refresh(duels) {
      const key = `${duels?.open ?? 0}`;
      if (key === seen) return;
      seen = key;
      // A reveal stays until the visitor moves on; the next load picks the rest up.
      if (!revealed) duels?.open ? load() : ((waiting = []), show());
    },
  };
}

function answer(letter, text, note = null) {
  return el("div", { class: "duel-answer" }, el("p", { class: "duel-letter" }, `Answer ${letter}`, note), el("div", { class: "content" }, renderMarkdown(text, NO_NAMES)));
}

function ballot(duel, vote, counts) {
  const question = duel.prompt.findLast?.((message) => message.role === "user")?.content ?? "";
  const choice = (value, text) => el("button", { class: "button", type: "button", text, on: { click: (event) => { event.currentTarget.disabled = true; vote(duel, value); } } });
  return [
    el("blockquote", { class: "duel-prompt", dir: "auto", text: question }),
    answer("A", duel.first),
    answer("B", duel.second),
    el("div", { class: "button-row is-thirds", role: "group", "aria-labelledby": "duels-title" }, choice(FIRST, "A"), choice(TIE, "Tie"), choice(SECOND, "B")),
    el("p", { class: "faint", text: `A blind vote: one is the champion's, one the challenger's. ${counts}.` }),
  ];
}

function verdict(duel, choice, result) {
  const known = typeof result.first_is_challenger === "boolean";
  const who = (first) => (known ? el("span", { class: "badge", text: first === result.first_is_challenger ? "challenger" : "champion" }) : null);
  const words = { [FIRST]: "You preferred A.", [TIE]: "You called it a tie.", [SECOND]: "You preferred B." }[choice];
  return [el("p", { role: "status", text: words }), answer("A", duel.first, who(true)), answer("B", duel.second, who(false))];
}
