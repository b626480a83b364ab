/** The playground page: one store, its views, and the wires between them. */

import { createActions } from "./actions.js";
import { Composer } from "./composer.js";
import { EventStream } from "./connection.js";
import { openModal } from "./dialogs.js";
import { el, fill } from "./dom.js";
import { createDrawers } from "./drawers.js";
import { mountGuide } from "./guide.js";
import { icon } from "./icons.js";
import { mountLoop } from "./loop.js";
import { MessageList } from "./message_list.js";
import { createBanner, toast } from "./notices.js";
import { mountRail } from "./rail.js";
import { Store } from "./store.js";

const store = new Store();
const actions = createActions(store, toast);
const drawers = createDrawers();

mountRail(store, () => drawers.close());
mountHead();
const compose = new Composer(store, actions, toast);
const list = new MessageList(store, actions, compose);
mountLoop(store, actions, { leave: () => drawers.close(), announce: toast });
mountGuide(store, {
  compose,
  list,
  openLoop: () => {
    drawers.open("loop");
    const retrain = document.getElementById("retrain");
    retrain.scrollIntoView({ block: "center" });
    retrain.focus();
  },
});

store.on("modal", (modal) => {
  if (modal.user_id === store.actorId) openModal(modal, (values) => actions.submitModal(modal.modal_id, values));
});
store.on("failed", (sentence) => toast(sentence, "error"));

const stream = new EventStream({
  onFrame: (frame) => store.take(frame),
  onUp: () => {
    store.setConnected(true);
    banner.up();
    if (matchMedia("(pointer: fine)").matches && document.activeElement === document.body) compose.focus();
  },
  onDown: (retryAtMs) => {
    store.setConnected(false);
    banner.down(retryAtMs);
  },
});
const banner = createBanner(() => stream.retryNow());
stream.connect();

function mountHead() {
  const head = document.getElementById("stage-head");
  const toggle = (side, name, label) => {
    const button = el("button", { class: `icon-button toggle-${side}`, type: "button", "aria-label": label, "aria-controls": side, "aria-expanded": "false" }, icon(name));
    button.addEventListener("click", () => drawers.open(side));
    return button;
  };
  const title = el("div", { class: "stage-title" });
  const showLoop = toggle("loop", "loop", "Show the loop panel");
  showLoop.append(el("span", { text: "The loop" }));
  fill(head, toggle("rail", "menu", "Show channels and members"), title, showLoop);

  store.on("snapshot channel actor", () => {
    const channel = store.channel;
    if (!channel) return;
    const direct = channel.kind === "dm";
    const name = direct ? (store.bot?.name ?? channel.name) : channel.name;
    fill(title, icon(direct ? "at" : "hash"), el("h1", { dir: "auto", text: name }), channel.topic ? el("p", { class: "faint", dir: "auto", text: channel.topic }) : null);
    document.title = `${direct ? "" : "#"}${name} · Strop playground`;
  });
  store.on("loop snapshot", () => showLoop.classList.toggle("is-busy", Boolean(store.loop?.run)));
}
