/** The one toolbar that visits whichever message is hovered or focused: react, reply, edit, delete, and the bot's own entries. */

import { confirmDialog } from "./dialogs.js";
import { el, fill } from "./dom.js";
import { icon } from "./icons.js";
import { isEphemeral } from "./store.js";

/** Discord's type of a command in a message's context menu. */
const MESSAGE_COMMAND = 3;
const EMOJI = ["👍", "👎", "❤️", "😂", "🎉", "🤔", "👀", "🔥", "😮", "😢", "🙏", "✅", "🚀", "☕", "🪒", "✨"];

/** Mount the toolbar for `list`. It holds one set of buttons, moved from message to message. */
export function createToolbar({ store, actions, compose, list }) {
  const bar = el("div", { class: "toolbar", role: "toolbar", "aria-label": "Message actions" });
  const picker = createPicker();
  const apps = createAppsMenu();
  let current = null;
  const root = document.getElementById("messages");

  const visit = (node) => {
    const message = node && store.message(store.channelId, node.dataset.id);
    if (!message || isEphemeral(message)) return leave();
    if (current === message.id && bar.parentElement === node) return;
    current = message.id;
    fill(bar, buttons(message));
    node.append(bar);
  };
  const leave = () => {
    current = null;
    bar.remove();
  };

  const tool = (name, label, click) =>
    el("button", { class: "icon-button", type: "button", "aria-label": label, title: label, on: { click } }, icon(name));

  const buttons = (message) => {
    const own = message.author.id === store.actorId;
    return [
      tool("smile", "Add a reaction", (event) => picker.open(event.currentTarget, (emoji) => actions.react(message, emoji))),
      tool("reply", "Reply", () => compose.replyTo(message)),
      offered().length ? tool("apps", "Apps", (event) => apps.open(event.currentTarget, offered(), (name) => actions.menu(message, name))) : null,
      own ? tool("pencil", "Edit", () => compose.edit(message)) : null,
      own ? tool("trash", "Delete", () => remove(message)) : null,
    ];
  };

  const offered = () => store.commands.filter((command) => command.type === MESSAGE_COMMAND).map((command) => command.name);

  const remove = async (message) => {
    const sure = await confirmDialog({
      title: "Delete this message?",
      body: "It is removed for everyone in this channel.",
      confirm: "Delete",
      danger: true,
    });
    if (sure) await actions.remove(message);
    compose.focus();
  };

  root.addEventListener("pointerover", (event) => event.pointerType === "mouse" && visit(event.target.closest(".message")));
  root.addEventListener("pointerleave", () => {
    if (!bar.contains(document.activeElement) && !isBusy()) visit(document.activeElement?.closest?.(".message"));
  });
  root.addEventListener("focusin", (event) => visit(event.target.closest(".message")));
  root.addEventListener("focusout", (event) => {
    if (!root.contains(event.relatedTarget) && !isBusy()) leave();
  });
  const isBusy = () => picker.isOpen() || apps.isOpen();
  list.scroller.addEventListener("scroll", () => [picker, apps].forEach((panel) => panel.close()), { passive: true });
  return { leave };
}

/** The bot's entries for one message, as Discord has them under "Apps". */
function createAppsMenu() {
  const panel = el("div", { class: "apps-menu", popover: "auto", role: "menu", "aria-label": "Apps" });
  let opener = null;
  panel.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...panel.children];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
  });
  panel.addEventListener("toggle", (event) => event.newState === "closed" && opener?.isConnected && opener.focus());
  document.body.append(panel);

  return {
    isOpen: () => panel.matches(":popover-open"),
    close: () => panel.matches(":popover-open") && panel.hidePopover(),
    open(anchor, names, choose) {
      opener = anchor;
      const entry = (name) => {
        const click = () => {
          panel.hidePopover();
          choose(name);
        };
        return el("button", { class: "apps-entry", type: "button", role: "menuitem", dir: "auto", text: name, on: { click } });
      };
      fill(panel, names.map(entry));
      panel.showPopover();
      placeBeside(panel, anchor);
      panel.firstChild.focus();
    },
  };
}

/** Put an open panel above its button, or below where there is no room. */
function placeBeside(panel, anchor) {
  const [at, own] = [anchor.getBoundingClientRect(), panel.getBoundingClientRect()];
  const above = at.top - own.height - 6;
  panel.style.top = `${above > 8 ? above : at.bottom + 6}px`;
  panel.style.left = `${Math.max(8, Math.min(at.right - own.width, innerWidth - own.width - 8))}px`;
}

function createPicker() {
  const panel = el("div", { class: "picker", popover: "auto", role: "group", "aria-label": "Choose a reaction" });
  let choose = () => {};
  let opener = null;
  for (const emoji of EMOJI) {
    const button = el("button", { class: "picker-emoji", type: "button", "aria-label": `React with ${emoji}`, text: emoji });
    button.addEventListener("click", () => {
      panel.hidePopover();
      choose(emoji);
    });
    panel.append(button);
  }
  panel.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...panel.children];
    all[all.indexOf(document.activeElement) + step]?.focus();
  });
  panel.addEventListener("toggle", (event) => event.newState === "closed" && opener?.isConnected && opener.focus());
  document.body.append(panel);

  return {
    isOpen: () => panel.matches(":popover-open"),
    close: () => panel.matches(":popover-open") && panel.hidePopover(),
    open(anchor, onChoose) {
      choose = onChoose;
      opener = anchor;
      panel.showPopover();
      placeBeside(panel, anchor);
      panel.firstChild.focus();
    },
  };
}
