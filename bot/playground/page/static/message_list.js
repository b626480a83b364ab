/** The list of messages: a bounded window of DOM over the channel, pinned to the bottom while one is reading there. */

import { el, fill, oncePerFrame } from "./dom.js";
import { icon, mark } from "./icons.js";
import { MessageRenderer } from "./message.js";
import { createToolbar } from "./toolbar.js";
import { day, sameDay } from "./time.js";

const WINDOW = 120;
const WINDOW_MOST = 480;
const AT_BOTTOM_PX = 80;
/** Offered where nobody has said anything yet; a click writes one into the box. */
const STARTERS = ["Hello! Who are you?", "What should I cook tonight?", "Tell me something about the sea."];

/** What somebody wrote, and what their own command or button answered, is what they want to see next. */
const isOwn = (message, actorId) => [message.author.id, message.visible_to, message.interaction_metadata?.user?.id].includes(actorId);

/** Mounts the list. `compose` is the composer: `replyTo(message)`, `focus()`. */
export class MessageList {
  #nodes = new Map();
  #furniture = new Map();
  #size = WINDOW;
  #pinned = true;
  #missed = 0;
  #active = null;

  constructor(store, actions, compose) {
    this.store = store;
    this.scroller = document.getElementById("scroller");
    this.root = document.getElementById("messages");
    this.renderer = new MessageRenderer(store, actions);
    this.toolbar = createToolbar({ store, actions, compose, list: this });
    this.compose = compose;
    this.chip = el("button", { class: "jump", type: "button", hidden: true }, icon("down"), el("span"));
    this.chip.addEventListener("click", () => this.toBottom());
    this.scroller.after(this.chip);
    this.sync = oncePerFrame(() => this.#sync());
    this.#listen();
  }

  #listen() {
    const { store, scroller, root } = this;
    store.on("snapshot channel actor", () => this.#reset());
    store.on("message", ({ message, isNew }) => {
      if (message.channel_id !== store.channelId) return;
      if (isNew && !this.#pinned && store.canSee(message)) this.#missed += 1;
      if (isNew && isOwn(message, store.actorId)) this.#pinned = true;
      this.sync();
    });
    store.on("gone status", () => this.sync());
    scroller.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    new ResizeObserver(() => this.#pinned && this.#stick()).observe(root);
    new ResizeObserver(() => this.#pinned && this.#stick()).observe(scroller);
    root.addEventListener("focusin", (event) => this.#activate(event.target.closest(".message")));
    root.addEventListener("click", (event) => this.#onClick(event));
    root.addEventListener("keydown", (event) => this.#onKey(event));
  }

  #reset() {
    this.#nodes.clear();
    this.#furniture.clear();
    this.#size = WINDOW;
    this.#pinned = true;
    this.#missed = 0;
    this.#active = null;
    this.root.replaceChildren();
    this.toolbar.leave();
    this.#sync();
  }

  #sync() {
    const { store, root } = this;
    const all = store.visibleMessages;
    const shown = all.slice(-this.#size);
    const wanted = [];
    if (all.length > shown.length) wanted.push(this.#earlier(all.length - shown.length));
    else if (store.channel) wanted.push(this.#beginning());
    shown.forEach((message, index) => {
      const previous = shown[index - 1] ?? null;
      const newDay = !previous || !sameDay(new Date(previous.timestamp), new Date(message.timestamp));
      if (newDay) wanted.push(this.#divider(message));
      wanted.push(this.#nodeFor(message, newDay ? null : previous));
    });
    place(root, wanted);
    const kept = new Set(shown.map((message) => message.id));
    for (const id of this.#nodes.keys()) if (!kept.has(id)) this.#nodes.delete(id);
    this.#keepReachable();
    if (this.#pinned) this.#stick();
    this.#showChip();
  }

  #nodeFor(message, previous) {
    const known = this.#nodes.get(message.id);
    if (known) {
      this.renderer.update(known, message, previous);
      return known;
    }
    const node = this.renderer.build(message, previous);
    this.#nodes.set(message.id, node);
    return node;
  }

  #cached(key, build) {
    if (!this.#furniture.has(key)) this.#furniture.set(key, build());
    return this.#furniture.get(key);
  }

  #divider(message) {
    const date = new Date(message.timestamp);
    const key = `day-${date.toDateString()}`;
    return this.#cached(key, () => el("div", { class: "divider", role: "separator" }, el("span", { text: day(date) })));
  }

  #earlier(count) {
    const node = this.#cached("earlier", () => {
      const button = el("button", { class: "button is-quiet", type: "button" });
      button.addEventListener("click", () => this.#grow());
      return el("div", { class: "earlier" }, button);
    });
    node.firstChild.textContent = `Show earlier messages (${count})`;
    return node;
  }

  #beginning() {
    const { channel, guild, actor, visibleMessages } = this.store;
    const starters = visibleMessages.length ? [] : STARTERS;
    return this.#cached(`beginning-${channel.id}-${starters.length}`, () =>
      channel.kind === "dm"
        ? this.#opening("Direct messages with Strop", `Only ${actor?.name ?? "you"} and Strop read these. They never train anything.`, starters)
        : this.#opening(`Welcome to #${channel.name}`, `This is ${guild.name}, a community on this machine only. Talk to Strop, and rate what it says: that is what it learns from.`, starters),
    );
  }

  #opening(title, sentence, starters) {
    const chips = starters.map((text) => el("button", { class: "button", type: "button", text, on: { click: () => this.compose.suggest(text) } }));
    return el("div", { class: "beginning" }, mark(), el("h2", { dir: "auto", text: title }), el("p", { dir: "auto", text: sentence }), chips.length ? el("div", { class: "starters" }, chips) : null);
  }

  #grow() {
    const fromBottom = this.scroller.scrollHeight - this.scroller.scrollTop;
    this.#pinned = false;
    this.#size = Math.min(this.#size + WINDOW, Math.max(WINDOW_MOST, this.#size));
    this.#sync();
    this.scroller.scrollTop = this.scroller.scrollHeight - fromBottom;
  }

  #onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.#pinned = scrollHeight - scrollTop - clientHeight < AT_BOTTOM_PX;
    if (this.#pinned) {
      this.#missed = 0;
      if (this.#size > WINDOW) {
        this.#size = WINDOW;
        this.sync();
      }
    }
    this.#showChip();
  }

  #stick() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #showChip() {
    this.chip.hidden = this.#pinned;
    this.chip.lastChild.textContent = this.#missed ? `${this.#missed} new` : "Jump to latest";
  }

  /** Scroll to the newest message and stay there. */
  toBottom() {
    this.#pinned = true;
    this.#missed = 0;
    this.#stick();
    this.#showChip();
    this.compose.focus();
  }

  /** Scroll to a message and flash it; nothing happens if it is no longer shown. */
  show(id) {
    const node = this.#nodes.get(id);
    if (!node) return;
    node.scrollIntoView({ block: "center" });
    node.classList.remove("is-found");
    requestAnimationFrame(() => node.classList.add("is-found"));
    node.focus({ preventScroll: true });
  }

  /** Focus the newest message that `test` accepts; true if there is one. */
  focusLast(test) {
    const message = this.store.visibleMessages.findLast(test);
    if (message) this.show(message.id);
    return Boolean(message);
  }

  #activate(node) {
    if (!node || node === this.#active) return;
    this.#reachable(this.root.querySelector('.message[tabindex="0"]'), false);
    this.#reachable(node, true);
    this.#active = node;
  }

  /** The tab stop is the message that has the focus, else the newest one. */
  #keepReachable() {
    const focused = document.activeElement?.closest?.("#messages .message");
    const wanted = focused ?? this.root.querySelector(".message:last-child");
    const current = this.root.querySelector('.message[tabindex="0"]');
    if (current !== wanted) this.#reachable(current, false);
    this.#reachable(wanted, true);
    this.#active = wanted;
  }

  /** One message at a time is a tab stop; its buttons with it. */
  #reachable(node, on) {
    if (!node) return;
    node.tabIndex = on ? 0 : -1;
    for (const inner of node.querySelectorAll(".pill, .quote-text, .component-row.is-quiet .button")) inner.tabIndex = on ? 0 : -1;
  }

  #onClick(event) {
    const jump = event.target.closest("[data-jump]");
    if (!jump) return;
    const { channel } = jump.dataset;
    if (channel && this.store.channels.some((each) => each.id === channel)) this.store.open(channel);
    // The other channel's messages are drawn in the next frame.
    requestAnimationFrame(() => this.show(jump.dataset.jump));
  }

  #onKey(event) {
    const node = event.target.closest(".message");
    if (event.key === "Escape") {
      event.preventDefault();
      this.compose.focus();
    }
    if (event.target !== node || event.ctrlKey || event.metaKey || event.altKey) return;
    const message = this.store.message(this.store.channelId, node.dataset.id);
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step) {
      event.preventDefault();
      const articles = [...this.root.querySelectorAll(".message")];
      articles[articles.indexOf(node) + step]?.focus();
    } else if (event.key === "r") {
      event.preventDefault();
      this.compose.replyTo(message);
    }
  }
}

/** Make `root`'s children exactly `wanted`, moving as little as possible. */
function place(root, wanted) {
  const keep = new Set(wanted);
  for (const node of [...root.childNodes]) if (!keep.has(node)) node.remove();
  wanted.forEach((node, index) => {
    if (root.childNodes[index] !== node) root.insertBefore(node, root.childNodes[index] ?? null);
  });
}
