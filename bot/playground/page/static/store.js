/** What the page knows: the last snapshot and every event since. Views listen; only this module changes it. */

import { memory } from "./dom.js";

const EPHEMERAL = 1 << 6;
const LOADING = 1 << 7;
const THREAD_CREATED = 18;
const TYPING_MS = 10_000;
const CARET_MS = 4_000;
const KEPT_PER_CHANNEL = 2_000;

/** Snowflakes in time order (they are decimal strings of different lengths). */
const byId = (a, b) => a.id.length - b.id.length || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);

/**
 * Events: "snapshot", "channel" (another one is open), "actor" (another member acts), "message" {message, isNew},
 * "gone" {channel_id, id}, "typing", "loop", "status", "commands", "modal" (payload), "unread", "failed" (a sentence).
 */
export class Store extends EventTarget {
  ready = false;
  guild = { id: "", name: "Strop" };
  channels = [];
  members = new Map();
  bot = null;
  messages = new Map();
  commands = [];
  loop = null;
  botOnline = false;
  connected = false;
  actorId = null;
  channelId = null;
  unread = new Map();
  /** Whether the bot puts buttons below its answers: the configuration may want none. Where the server doesn't say, seen. */
  showsReplyButtons = false;
  #guessesButtons = true;
  #typing = new Map();
  #carets = new Map();

  #emit(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Subscribe; the listener receives the event's detail. */
  on(types, listener) {
    for (const type of types.split(" ")) this.addEventListener(type, (event) => listener(event.detail));
  }

  get actor() {
    return this.members.get(this.actorId) ?? null;
  }

  get channel() {
    return this.channels.find((channel) => channel.id === this.channelId) ?? null;
  }

  /** Channels the acting member can see: every text channel and their own direct messages. */
  get visibleChannels() {
    const visible = this.channels.filter((channel) => channel.kind !== "dm" || !channel.user_id || channel.user_id === this.actorId);
    const threads = (parent) => visible.filter((channel) => channel.parent_id === parent.id);
    return visible.filter((channel) => !channel.parent_id).flatMap((channel) => [channel, ...threads(channel)]);
  }

  /** Messages of the open channel that the acting member may see, oldest first. */
  get visibleMessages() {
    return (this.messages.get(this.channelId) ?? []).filter((message) => this.canSee(message));
  }

  /** Ephemeral messages are for one member only. */
  canSee(message) {
    if (!isEphemeral(message)) return true;
    const owner = message.visible_to ?? message.interaction_metadata?.user?.id ?? null;
    return owner === this.actorId;
  }

  /** A message of the open or any other channel by id. */
  message(channelId, id) {
    return (this.messages.get(channelId) ?? []).find((message) => message.id === id) ?? null;
  }

  /** Whether the bot is still writing this message. */
  isStreaming(message) {
    if (typeof message.streaming === "boolean") return message.streaming;
    const actions = buttonIds(message).filter((id) => id.startsWith("strop:reply:"));
    // The bot's own buttons say it exactly; without them a recent edit has to do.
    if (actions.length) return actions.some((id) => id.startsWith("strop:reply:stop:"));
    return this.#carets.has(message.id);
  }

  /** Names of those typing in the open channel, the acting member left out. */
  get typingNames() {
    const now = Date.now();
    const typing = this.#typing.get(this.channelId) ?? new Map();
    return [...typing].filter(([id, until]) => until > now && id !== this.actorId).map(([id]) => this.nameOf(id));
  }

  /** A member's display name. */
  nameOf(id) {
    return this.members.get(id)?.name ?? "someone";
  }

  /** Take the server's whole state, at the first connection and after each reconnection. */
  takeSnapshot(snapshot) {
    this.guild = snapshot.guild;
    this.channels = snapshot.channels;
    this.members = new Map(snapshot.members.map((member) => [member.id, member]));
    this.bot = snapshot.members.find((member) => member.bot) ?? null;
    this.messages = new Map(
      Object.entries(snapshot.messages).map(([id, list]) => [id, list.map((raw) => mergeMessage(null, raw)).sort(byId)]),
    );
    this.#guessesButtons = typeof snapshot.reply_buttons !== "boolean";
    this.showsReplyButtons = snapshot.reply_buttons ?? [...this.messages.values()].some((list) => list.some(hasReplyButtons));
    this.commands = snapshot.commands ?? [];
    this.loop = snapshot.loop ?? null;
    this.botOnline = Boolean(snapshot.bot_online);
    this.ready = true;
    this.#typing.clear();
    if (!this.members.has(this.actorId) || this.actor.bot) this.actorId = this.#firstActor();
    this.#settleChannel();
    this.#emit("snapshot");
  }

  #firstActor() {
    const people = [...this.members.values()].filter((member) => !member.bot);
    const remembered = people.find((member) => member.id === memory.get("actor") && !member.simulated);
    const real = people.filter((member) => !member.simulated);
    return (remembered ?? real.find((member) => member.operator) ?? real[0] ?? people[0])?.id ?? null;
  }

  #settleChannel() {
    const visible = this.visibleChannels;
    if (visible.some((channel) => channel.id === this.channelId)) return;
    const wasDirect = this.channel?.kind === "dm";
    const wanted = visible.find((channel) => channel.kind === (wasDirect ? "dm" : "text"));
    this.channelId = (wanted ?? visible[0])?.id ?? null;
  }

  /** Act as another member. */
  actAs(id) {
    if (id === this.actorId) return;
    this.actorId = id;
    memory.set("actor", id);
    this.#settleChannel();
    this.#emit("actor");
  }

  /** Open a channel. */
  open(id) {
    if (id === this.channelId) return;
    this.channelId = id;
    this.unread.delete(id);
    this.#emit("channel");
  }

  /** Take one frame from the events socket. */
  take(frame) {
    if (frame.t === "snapshot") this.takeSnapshot(frame);
    else if (frame.t === "loop") this.takeLoop(frame.loop);
    else if (frame.t === "event") this.#events[frame.event]?.(frame.data);
  }

  /** The loop's state has changed. */
  takeLoop(loop) {
    this.loop = loop;
    this.#emit("loop");
  }

  /** The events socket is open (or no longer). */
  setConnected(connected) {
    this.connected = connected;
    this.#emit("status");
  }

  #events = {
    MESSAGE_CREATE: (data) => this.#onMessage(data, true),
    MESSAGE_UPDATE: (data) => this.#onMessage(data, false),
    MESSAGE_DELETE: (data) => this.drop(data.channel_id, data.id),
    MESSAGE_REACTION_ADD: (data) => this.#onReaction(data, true),
    MESSAGE_REACTION_REMOVE: (data) => this.#onReaction(data, false),
    TYPING_START: (data) => this.#setTyping(data.channel_id, data.user_id, TYPING_MS),
    INTERACTION_RESPONSE: (data) => this.#onInteraction(data),
    MODAL_OPEN: (data) => this.#emit("modal", data),
    CHANNEL_CREATE: (data) => this.#onChannel(data),
    THREAD_CREATE: (data) => this.#onChannel(data),
    COMMANDS_CHANGED: (data) => {
      this.commands = Array.isArray(data) ? data : (data.commands ?? []);
      this.#emit("commands");
    },
    BOT_STATUS: (data) => {
      this.botOnline = Boolean(data.online);
      this.#emit("status");
    },
  };

  #onChannel(raw) {
    if (this.channels.some((channel) => channel.id === raw.id)) return;
    const parent = raw.thread_metadata ? { parent_id: raw.parent_id } : {};
    this.channels.push({ id: raw.id, name: raw.name, kind: "text", topic: raw.topic ?? "", ...parent });
    this.#emit("unread");
  }

  #onMessage(raw, created) {
    const list = this.messages.get(raw.channel_id) ?? [];
    const index = list.findIndex((message) => message.id === raw.id);
    const before = index < 0 ? null : list[index];
    // An edit of a message that was never sent here carries no author: there is nothing to show.
    if (!before && !raw.author) return;
    const message = mergeMessage(before, raw);
    if (this.#guessesButtons) this.showsReplyButtons ||= hasReplyButtons(message);
    if (before) list[index] = message;
    else list.push(message);
    if (list.length > 1 && !before && byId(list.at(-2), message) > 0) list.sort(byId);
    if (list.length > KEPT_PER_CHANNEL) list.splice(0, list.length - KEPT_PER_CHANNEL);
    this.messages.set(raw.channel_id, list);
    if (created) this.#setTyping(raw.channel_id, message.author.id, 0);
    this.#moveCaret(message, created || before?.content !== message.content);
    if (created && raw.channel_id !== this.channelId && this.canSee(message)) {
      this.unread.set(raw.channel_id, (this.unread.get(raw.channel_id) ?? 0) + 1);
      this.#emit("unread");
    }
    this.#emit("message", { message, isNew: !before });
  }

  #moveCaret(message, changed) {
    if (!changed || typeof message.streaming === "boolean" || !isRateable(message, this)) return;
    clearTimeout(this.#carets.get(message.id));
    const timer = setTimeout(() => {
      this.#carets.delete(message.id);
      const current = this.message(message.channel_id, message.id);
      if (current) this.#emit("message", { message: current, isNew: false });
    }, CARET_MS);
    this.#carets.set(message.id, timer);
  }

  /** Forget a message (deleted by someone, or an ephemeral one dismissed). */
  drop(channelId, id) {
    const list = this.messages.get(channelId) ?? [];
    this.messages.set(channelId, list.filter((message) => message.id !== id));
    this.#emit("gone", { channel_id: channelId, id });
  }

  #onReaction(data, added) {
    const message = this.message(data.channel_id, data.message_id);
    if (!message) return;
    const name = data.emoji.name;
    let reaction = message.reactions.find((entry) => entry.emoji.name === name);
    if (!reaction) message.reactions.push((reaction = { emoji: data.emoji, users: [] }));
    reaction.users = reaction.users.filter((id) => id !== data.user_id);
    if (added) reaction.users.push(data.user_id);
    message.reactions = message.reactions.filter((entry) => entry.users.length > 0);
    this.#emit("message", { message, isNew: false });
  }

  #onInteraction(data) {
    if (data.state === "failed" && data.user_id === this.actorId) {
      this.#emit("failed", data.error ?? "Strop did not answer in time. Try again.");
    }
  }

  #setTyping(channelId, userId, forMs) {
    if (!userId) return;
    const typing = this.#typing.get(channelId) ?? new Map();
    if (forMs) typing.set(userId, Date.now() + forMs);
    else typing.delete(userId);
    this.#typing.set(channelId, typing);
    this.#emit("typing");
    if (forMs) setTimeout(() => this.#emit("typing"), forMs + 50);
  }
}

/** "Only you can see this". */
export function isEphemeral(message) {
  return Boolean((message.flags ?? 0) & EPHEMERAL);
}

/** A deferred answer that the bot has not written yet. */
export function isThinking(message) {
  return Boolean((message.flags ?? 0) & LOADING);
}

/** A display name out of a Discord user payload. */
export function displayName(user) {
  return user?.global_name || user?.username || "someone";
}

/** Whether a message holds two answers to choose from. */
export function isComparison(message) {
  return buttonIds(message).some((id) => id.startsWith("strop:compare:"));
}

/** Whether Discord itself says here that a thread was opened. */
export const opensThread = (message) => message.type === THREAD_CREATED;

/** Whether this is a reply of the bot that a thumb can rate (progress notes and private answers are not). */
export function isRateable(message, store) {
  if (message.author.id !== store.bot?.id || isEphemeral(message) || isThinking(message)) return false;
  // Two candidates are voted on, and thumbs that are buttons need no second pair.
  if (isComparison(message) || buttonIds(message).some((id) => id.startsWith("strop:reply:up:"))) return false;
  if (opensThread(message)) return false;
  // Where answers have buttons, what has none is a notice, and its thumbs would count for nothing.
  if (store.showsReplyButtons) return belongsToAnswer(message, store);
  // Runs, votes and tastings have buttons of their own; what replies to the bot itself is a report, no answer.
  if (buttonIds(message).some((id) => /^strop:(run|duel|tasting|compare):/.test(id))) return false;
  const before = message.message_reference?.message_id;
  const citedBy = before && (store.messages.get(message.channel_id) ?? []).find((entry) => entry.id === before)?.author.id;
  if (citedBy === message.author.id) return false;
  if (message.message_reference || message.interaction_metadata?.name === "ask") return true;
  if (message.reactions.some((reaction) => ["👍", "👎"].includes(reaction.emoji.name))) return true;
  const channel = store.channels.find((entry) => entry.id === message.channel_id);
  return (channel?.kind === "dm" || Boolean(channel?.parent_id)) && !message.interaction_metadata && !message.embeds?.length;
}

/** Whether a message has an answer's buttons, or is an earlier part of a long one that has. */
function belongsToAnswer(message, store) {
  const list = store.messages.get(message.channel_id) ?? [];
  for (let at = list.indexOf(message); at >= 0 && at < list.length; at += 1) {
    if (list[at].author.id !== message.author.id || (list[at] !== message && list[at].message_reference)) return false;
    if (hasReplyButtons(list[at])) return true;
  }
  return false;
}

const hasReplyButtons = (message) => buttonIds(message).some((id) => id.startsWith("strop:reply:"));

function buttonIds(message) {
  return (message.components ?? []).flatMap((row) => row.components ?? []).map((button) => button.custom_id ?? "");
}

/** Merge an incoming payload into what is known. Edits are partial; reactions keep who reacted. */
function mergeMessage(before, raw) {
  const message = { ...before, ...raw };
  if (raw.reactions) message.reactions = raw.reactions.map((entry) => withUsers(entry, before));
  else message.reactions = before?.reactions ?? [];
  return message;
}

function withUsers(entry, before) {
  const known = before?.reactions.find((reaction) => reaction.emoji.name === entry.emoji.name)?.users ?? [];
  return { emoji: entry.emoji, users: entry.users ?? known };
}
