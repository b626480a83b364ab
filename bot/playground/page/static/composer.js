/** The message box: sending, replying, editing, asking Strop, and the way into the slash commands. */

import { createPalette } from "./commands.js";
import { el, fill, memory } from "./dom.js";
import { asFile, createFiles } from "./files.js";
import { icon, mark } from "./icons.js";
import { shortName } from "./message.js";
import { displayName, isEphemeral } from "./store.js";

const LONGEST = 2_000;
const COUNT_FROM = 1_800;

/** Mounts the composer; returns `{focus, replyTo(message), edit(message), suggest(text), runCommand(name)}`. */
export class Composer {
  #replyingTo = null;
  #editing = null;
  #drafts = new Map();
  #openChannel = null;

  constructor(store, actions, notify) {
    this.store = store;
    this.actions = actions;
    this.notify = notify;
    this.asksBot = memory.get("asks-bot") !== "no";
    this.#build();
    this.palette = createPalette({ store, actions, composer: this });
    this.dock.prepend(this.palette.panel);
    this.#listen();
  }

  #build() {
    this.context = el("div", { class: "composer-context", hidden: true });
    this.input = el("textarea", {
      id: "composer-input",
      rows: 1,
      dir: "auto",
      maxlength: 100_000,
      spellcheck: true,
      autocomplete: "off",
      enterkeyhint: "send",
      "aria-describedby": "composer-hint",
    });
    this.ask = el("button", { class: "ask", type: "button", title: "Address the message to Strop" }, mark(), el("span", { text: "Ask Strop" }));
    this.slash = this.#tool("slash", "Commands", () => this.#openPalette());
    this.sendButton = this.#tool("send", "Send", () => this.#submit());
    this.sendButton.classList.add("send");
    this.count = el("span", { class: "composer-count", hidden: true });
    this.box = el("div", { class: "composer" });
    this.files = createFiles({ box: this.box, onChange: () => this.#refresh(), refuse: (sentence) => this.notify(sentence, "error") });
    fill(this.box, this.ask, this.input, this.count, this.files.input, this.files.button, this.slash, this.sendButton);
    this.typing = el("div", { class: "typing", role: "status", "aria-live": "polite" });
    this.hint = el("span", { class: "composer-hint", id: "composer-hint" });
    this.dock = document.getElementById("composer-dock");
    fill(this.dock, this.context, this.files.tray, this.box, el("div", { class: "composer-foot" }, this.typing, this.hint));
  }

  #tool(name, label, click) {
    return el("button", { class: "icon-button", type: "button", "aria-label": label, title: label, on: { click } }, icon(name));
  }

  #listen() {
    const { store, input } = this;
    store.on("snapshot channel actor", () => this.#onPlace());
    store.on("typing status snapshot channel actor", () => this.#showTyping());
    store.on("status snapshot loop", () => this.#refresh());
    store.on("gone", ({ id }) => [this.#replyingTo?.id, this.#editing?.id].includes(id) && this.#leaveContext());
    input.addEventListener("input", () => this.#onInput());
    input.addEventListener("keydown", (event) => this.#onKey(event));
    this.ask.addEventListener("click", () => {
      this.asksBot = !this.asksBot;
      memory.set("asks-bot", this.asksBot ? "yes" : "no");
      this.#refresh();
      this.focus();
    });
  }

  #onPlace() {
    const place = `${this.store.channelId}/${this.store.actorId}`;
    if (place !== this.#openChannel) {
      // What was typed before the page was connected belongs to the place that it opens with.
      const text = this.#openChannel ? (this.#drafts.get(place) ?? "") : this.input.value;
      if (this.#openChannel) this.#drafts.set(this.#openChannel, this.input.value);
      this.#openChannel = place;
      this.#leaveContext();
      this.#setText(text);
    }
    this.palette.close();
    this.#refresh();
  }

  #refresh() {
    const { store } = this;
    const channel = store.channel;
    const direct = channel?.kind === "dm";
    this.input.placeholder = direct ? "Message Strop" : `Message #${channel?.name ?? ""}`;
    this.input.setAttribute("aria-label", this.input.placeholder);
    this.ask.hidden = direct || Boolean(this.#editing);
    this.ask.setAttribute("aria-pressed", String(this.asksBot));
    this.hint.textContent = this.#hintText(direct);
    this.hint.classList.toggle("is-warning", !store.botOnline);
    this.files.button.hidden = Boolean(this.#editing);
    this.sendButton.disabled = !this.#hasContent() || !store.connected;
  }

  #hasContent() {
    return Boolean(this.input.value.trim()) || (this.files.count > 0 && !this.#editing);
  }

  #hintText(direct) {
    if (this.store.ready && !this.store.botOnline) return "Strop is not connected yet. It answers once it is back.";
    if (this.store.loop?.server?.status === "loading") return "The model is still loading. Strop answers once it is ready";
    if (this.#editing) return "Enter saves, Escape cancels";
    if (this.#replyingTo?.author.bot || direct) return "Strop reads this. Type / for commands";
    return this.asksBot ? "Strop answers this. Type / for commands" : "Strop stays silent unless you mention @Strop or reply to it";
  }

  #showTyping() {
    const names = this.store.typingNames.map(shortName);
    const sentence = names.length > 2 ? "Several people are typing" : names.length ? `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing` : "";
    if (sentence === this.typing.dataset.sentence) return;
    this.typing.dataset.sentence = sentence;
    fill(this.typing, sentence ? [el("span", { class: "dots", "aria-hidden": "true" }, el("i"), el("i"), el("i")), el("span", { dir: "auto", text: sentence })] : null);
  }

  #onInput() {
    this.#grow();
    const { value } = this.input;
    this.count.hidden = value.length < COUNT_FROM;
    this.count.textContent = value.length > LONGEST && !this.#editing ? "goes as a file" : String(LONGEST - value.length);
    this.count.classList.toggle("is-over", value.length > LONGEST);
    this.sendButton.disabled = !this.#hasContent() || !this.store.connected;
    this.palette.suggest(this.#editing ? "" : value);
  }

  #grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, innerHeight * 0.4)}px`;
  }

  #onKey(event) {
    if (event.isComposing || this.palette.onKey(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === "Escape" && (this.#replyingTo || this.#editing)) {
      event.preventDefault();
      if (this.#editing) this.#setText("");
      this.#leaveContext();
    } else if (event.key === "ArrowUp" && !this.input.value && !this.#editing) {
      const own = this.store.visibleMessages.findLast((entry) => entry.author.id === this.store.actorId && !isEphemeral(entry));
      if (own) {
        event.preventDefault();
        this.edit(own);
      }
    }
  }

  async #submit() {
    const text = this.input.value.trim();
    if (!this.#hasContent() || !this.store.connected) return;
    const [editing, replyingTo] = [this.#editing, this.#replyingTo];
    const written = this.input.value;
    this.#setText("");
    this.#leaveContext();
    const channelId = this.store.channelId;
    const taken = editing ? null : this.files.take();
    const files = (await taken?.encoded()) ?? [];
    const tooLong = !editing && text.length > LONGEST;
    if (tooLong) files.unshift(await asFile(text));
    const content = this.#addressed(tooLong ? "" : text, replyingTo, editing).trim();
    const done = editing ? await this.actions.edit(editing, content) : await this.actions.send(channelId, content, replyingTo?.id, files);
    // What was refused comes back into the box, unless something new is there by now.
    if (done === undefined && !this.input.value) {
      this.#setText(written);
      taken?.back();
      if (editing) this.edit(editing, written);
      else if (replyingTo) this.replyTo(replyingTo);
    }
  }

  /** The text as it is sent: names become mentions, and the bot's mention is put in front where it is asked for. */
  #addressed(text, replyingTo, editing) {
    const { store } = this;
    const bot = store.bot;
    let content = text;
    if (bot) content = content.replace(new RegExp(`@${escapePattern(bot.name)}\\b`, "gi"), `<@${bot.id}>`);
    const wanted = this.asksBot && bot && !editing && store.channel?.kind !== "dm" && replyingTo?.author.id !== bot.id;
    return wanted && !content.includes(`<@${bot.id}>`) ? `<@${bot.id}> ${content}` : content;
  }

  #setText(text) {
    this.input.value = text;
    this.#onInput();
  }

  #leaveContext() {
    this.#replyingTo = null;
    this.#editing = null;
    this.context.hidden = true;
    this.#refresh();
  }

  #showContext(...what) {
    const cancel = this.#tool("close", "Cancel", () => {
      if (this.#editing) this.#setText("");
      this.#leaveContext();
      this.focus();
    });
    fill(this.context, el("p", {}, ...what), cancel);
    this.context.hidden = false;
    this.#refresh();
    this.focus();
  }

  /** Answer a message; replying to the bot reaches it without a mention. */
  replyTo(message) {
    this.#editing = null;
    this.#replyingTo = message;
    this.#showContext(icon("reply"), "Replying to ", el("strong", { dir: "auto", text: shortName(displayName(message.author)) }));
  }

  /** Edit one's own message in the box. */
  edit(message, text = null) {
    this.#replyingTo = null;
    this.#editing = message;
    const bot = this.store.bot;
    this.#setText(text ?? (bot ? message.content.replaceAll(`<@${bot.id}>`, `@${bot.name}`) : message.content));
    this.#showContext(icon("pencil"), "Editing your message");
  }

  /** Put the cursor in the box. */
  focus() {
    this.input.focus({ preventScroll: true });
  }

  /** Offer a text without sending it. */
  suggest(text) {
    if (!this.input.value) this.#setText(text);
    this.focus();
    this.input.setSelectionRange(this.input.value.length, this.input.value.length);
  }

  /** Empty the box (a command has been picked from it). */
  clear() {
    this.#setText("");
  }

  #openPalette() {
    this.#leaveContext();
    this.#setText("/");
    this.focus();
  }
}

const escapePattern = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
