/** One message: built once, then updated in place, so that a streaming edit disturbs neither focus nor selection. */

import { renderAttachment, renderComponents, renderEmbed } from "./components.js";
import { cssColor, el, fill } from "./dom.js";
import { icon, mark } from "./icons.js";
import { isJumbo, plainLine, renderMarkdown } from "./markdown.js";
import { displayName, isEphemeral, isRateable, isThinking, opensThread } from "./store.js";
import { clock, full, stamp } from "./time.js";

const GROUP_WITHIN_MS = 7 * 60_000;
const LONG = 3_000;
const THUMBS = ["👍", "👎"];

/** The round picture of a member: the mark for the bot, initials on the member's colour for people. */
export function avatar(member, size = "") {
  const node = el("span", { class: `avatar ${size}`, "aria-hidden": "true" });
  if (member?.bot) {
    node.classList.add("is-bot");
    node.append(mark());
    return node;
  }
  node.textContent = initials(member?.name ?? "?");
  const color = cssColor(member?.color);
  if (color) node.style.setProperty("--member", color);
  return node;
}

function initials(name) {
  const words = name.replace(/\(.*?\)/g, "").trim().split(/\s+/);
  return words.slice(0, 2).map((word) => [...word][0] ?? "").join("").toUpperCase() || "?";
}

/** A member's name without the "(simulated)" that the badge beside it says already. */
export const shortName = (name) => name.replace(/\s*\(simulated\)$/i, "");

/** Badges behind a name. */
export function badges(member) {
  return [
    member?.bot ? el("span", { class: "badge is-bot", text: "bot" }) : null,
    member?.simulated ? el("span", { class: "badge is-simulated", title: "Not a person: played by the playground", text: "simulated" }) : null,
  ];
}

/** Renders messages against a store; `actions` is what a click may do. */
export class MessageRenderer {
  constructor(store, actions) {
    this.store = store;
    this.actions = actions;
    this.names = {
      member: (id) => (store.members.has(id) ? shortName(store.nameOf(id)) : null),
      channel: (id) => store.channels.find((channel) => channel.id === id)?.name ?? null,
    };
  }

  /** The element of a message that follows `previous` (or null). */
  build(message, previous) {
    const node = el("article", { class: "message", tabindex: "-1", data: { id: message.id } });
    node.append(
      el("div", { class: "message-quote" }),
      el("div", { class: "message-side" }),
      el("div", { class: "message-head" }),
      el("div", { class: "message-body" }, el("div", { class: "content" }), el("div", { class: "extras" })),
      el("div", { class: "reactions" }),
    );
    this.update(node, message, previous);
    return node;
  }

  /** Bring `node` up to date; only the parts that changed are touched. */
  update(node, message, previous) {
    const grouped = isGrouped(message, previous);
    this.#part(node, ".message-head", `${grouped}`, () => this.#head(node, message, grouped));
    this.#part(node, ".message-quote", `${quoteOf(message, this.store)?.content}`, (part) => fill(part, this.#quote(message)));
    this.#content(node, message);
    const extras = JSON.stringify([message.components, message.embeds, message.attachments, isEphemeral(message)]);
    this.#part(node, ".extras", extras, (part) => keepFocus(part, () => fill(part, this.#extras(message))));
    const reactions = JSON.stringify([message.reactions, this.store.actorId, isRateable(message, this.store)]);
    this.#part(node, ".reactions", reactions, (part) => keepFocus(part, () => fill(part, this.#reactions(message))));
    node.classList.toggle("is-grouped", grouped);
    node.classList.toggle("is-private", isEphemeral(message));
    node.classList.toggle("mentions-me", (message.mentions ?? []).some((user) => user.id === this.store.actorId));
  }

  #part(node, selector, key, render) {
    const part = node.querySelector(`:scope > ${selector}, :scope > .message-body > ${selector}`);
    if (part.renderedFrom === key) return;
    part.renderedFrom = key;
    render(part);
  }

  #head(node, message, grouped) {
    const member = this.store.members.get(message.author.id) ?? { name: displayName(message.author), bot: message.author.bot };
    const sent = new Date(message.timestamp);
    const time = el("time", { datetime: sent.toISOString(), title: full(sent), text: grouped ? clock(sent) : stamp(sent) });
    const name = el("span", { class: "author", dir: "auto", text: shortName(member.name) });
    fill(node.querySelector(".message-side"), grouped ? time : avatar(member));
    fill(node.querySelector(".message-head"), grouped ? el("span", { class: "visually-hidden" }, shortName(member.name)) : [name, badges(member), time]);
  }

  /** What Discord shows where a thread was opened: its name, which leads there. */
  #threadLink(message) {
    const open = el("button", { class: "link-button", type: "button", dir: "auto", text: message.content });
    // A thread that was opened on a message has its id.
    const ids = [message.message_reference?.channel_id, message.message_reference?.message_id];
    open.addEventListener("click", () => {
      const thread = this.store.channels.find((channel) => channel.parent_id === message.channel_id && ids.includes(channel.id));
      if (thread) this.store.open(thread.id);
    });
    return el("p", { class: "faint" }, "opened a thread: ", open);
  }

  #quote(message) {
    const original = opensThread(message) ? null : quoteOf(message, this.store);
    const command = message.interaction_metadata ?? message.interaction;
    if (!original && command?.name) {
      return [el("span", { class: "quote-arm" }), el("span", { class: "author", text: shortName(displayName(command.user)) }), el("span", { class: "mention", text: `/${command.name}` })];
    }
    if (!message.message_reference || message.type === 6 || opensThread(message)) return null;
    if (!original) return [el("span", { class: "quote-arm" }), el("em", { class: "faint", text: "The original message is gone" })];
    const member = this.store.members.get(original.author.id);
    return [
      el("span", { class: "quote-arm" }),
      avatar(member, "is-tiny"),
      el("span", { class: "author", text: shortName(member?.name ?? displayName(original.author)) }),
      el("button", { class: "quote-text", type: "button", tabindex: "-1", dir: "auto", data: { jump: original.id }, text: plainLine(original.content, this.names) || "…" }),
    ];
  }

  #content(node, message) {
    const streaming = this.store.isStreaming(message);
    const edited = Boolean(message.edited_timestamp) && message.author.id !== this.store.bot?.id;
    node.classList.toggle("is-streaming", streaming);
    node.toggleAttribute("aria-busy", streaming);
    this.#part(node, ".content", `${edited} ${isThinking(message)} ${message.content}`, (part) => {
      if (isThinking(message)) {
        fill(part, el("p", { class: "thinking" }, el("span", { class: "dots", "aria-hidden": "true" }, el("i"), el("i"), el("i")), "Strop is thinking…"));
        return;
      }
      if (opensThread(message)) return fill(part, this.#threadLink(message));
      fill(part, renderMarkdown(message.content ?? "", this.names));
      part.classList.toggle("is-jumbo", isJumbo(message.content ?? ""));
      if (edited) part.append(el("span", { class: "edited", title: full(new Date(message.edited_timestamp)), text: " (edited)" }));
      if ((message.content ?? "").length > LONG && !node.classList.contains("is-opened")) this.#fold(node, part);
    });
  }

  #fold(node, part) {
    part.classList.add("is-folded");
    part.parentElement.querySelector(":scope > .unfold")?.remove();
    const open = el("button", { class: "button is-quiet unfold", type: "button", text: "Show the whole message" });
    open.addEventListener("click", () => {
      node.classList.add("is-opened");
      part.classList.remove("is-folded");
      open.remove();
    });
    part.after(open);
  }

  #extras(message) {
    const press = (custom_id, values) => this.actions.press(message, custom_id, values);
    const parts = [
      (message.embeds ?? []).map((embed) => renderEmbed(embed, this.names)),
      (message.attachments ?? []).map(renderAttachment),
      renderComponents(message.components ?? [], { store: this.store, names: this.names, press }),
    ];
    if (isEphemeral(message)) parts.push(this.#privateNote(message));
    return parts;
  }

  #privateNote(message) {
    const dismiss = el("button", { class: "link-button", type: "button", text: "Dismiss" });
    dismiss.addEventListener("click", () => this.store.drop(message.channel_id, message.id));
    return el("p", { class: "private-note" }, icon("eye"), "Only you can see this", dismiss);
  }

  #reactions(message) {
    const { store } = this;
    const rateable = isRateable(message, store);
    const counted = message.reactions.map((entry) => ({
      emoji: entry.emoji.name,
      // The bot seeds its replies with the thumbs; a count of people is what a visitor wants to read.
      users: entry.users.filter((id) => id !== store.bot?.id),
    }));
    const rest = counted.filter(({ emoji, users }) => !(rateable && THUMBS.includes(emoji)) && users.length);
    const thumbs = rateable ? THUMBS.map((emoji) => counted.find((entry) => entry.emoji === emoji) ?? { emoji, users: [] }) : [];
    return [...thumbs.map((entry) => this.#pill(message, entry, true)), ...rest.map((entry) => this.#pill(message, entry, false))];
  }

  #pill(message, { emoji, users }, quick) {
    const { store } = this;
    const mine = users.includes(store.actorId);
    const verb = { "👍": "Like this reply", "👎": "Dislike this reply" }[emoji] ?? `React with ${emoji}`;
    const who = users.slice(0, 12).map((id) => shortName(store.nameOf(id))).join(", ");
    const node = el(
      "button",
      {
        class: `pill ${quick && !users.length ? "is-empty" : ""} ${mine ? "is-mine" : ""}`,
        type: "button",
        tabindex: "-1",
        "aria-pressed": String(mine),
        "aria-label": `${quick ? verb : `React with ${emoji}`}, ${users.length} so far`,
        title: who || verb,
        data: { focusKey: emoji },
      },
      el("span", { class: "emoji", "aria-hidden": "true", text: emoji }),
      users.length ? el("span", { class: "count", text: String(users.length) }) : null,
    );
    node.addEventListener("click", () => this.actions.react(message, emoji));
    return node;
  }
}

function quoteOf(message, store) {
  const id = message.message_reference?.message_id;
  if (!id) return null;
  return store.message(message.channel_id, id) ?? message.referenced_message ?? null;
}

/** Whether a message continues its author's previous one. */
function isGrouped(message, previous) {
  if (!previous || previous.author.id !== message.author.id || message.message_reference) return false;
  if (isEphemeral(message) !== isEphemeral(previous) || message.interaction_metadata?.name) return false;
  const [sent, before] = [new Date(message.timestamp), new Date(previous.timestamp)];
  return sent - before < GROUP_WITHIN_MS && sent.getDate() === before.getDate();
}

function keepFocus(part, render) {
  const key = part.contains(document.activeElement) ? document.activeElement.dataset.focusKey : null;
  render();
  if (key) [...part.querySelectorAll("[data-focus-key]")].find((node) => node.dataset.focusKey === key)?.focus();
}
