/** The left rail: the community, its channels, direct messages, and the member one acts as. */

import { el, fill, memory } from "./dom.js";
import { icon, mark } from "./icons.js";
import { avatar, badges, shortName } from "./message.js";

const THEMES = ["auto", "light", "dark"];
const THEME_ICONS = { auto: "auto", light: "sun", dark: "moon" };

/** Mounts the rail; `leave()` is called after a choice, so that a drawer can close. */
export function mountRail(store, leave) {
  const rail = document.getElementById("rail");
  const guild = el("div", { class: "rail-guild" });
  const channels = el("nav", { class: "rail-channels", "aria-label": "Channels" });
  const present = el("div", { class: "rail-members" });
  const picker = createMemberPicker(store);
  fill(rail, guild, el("div", { class: "rail-scroll" }, channels, present), el("div", { class: "rail-foot" }, picker.button, themeButton()));

  const refresh = () => {
    if (!store.ready) return;
    fill(guild, mark(), el("div", {}, el("p", { class: "wordmark", text: "Strop" }), el("p", { class: "faint", dir: "auto", text: store.guild.name })));
    const open = (id) => {
      store.open(id);
      leave();
    };
    const visible = store.visibleChannels;
    fill(
      channels,
      group("Channels", visible.filter((channel) => channel.kind !== "dm"), store, open),
      group("Direct messages", visible.filter((channel) => channel.kind === "dm"), store, open),
    );
    fill(present, memberList(store));
    picker.refresh();
  };
  store.on("snapshot channel actor unread status", refresh);
}

function group(title, channels, store, open) {
  if (!channels.length) return null;
  const id = `rail-${title.replace(/\W/g, "-").toLowerCase()}`;
  return [
    el("h2", { class: "rail-title", id, text: title }),
    el("ul", { "aria-labelledby": id }, channels.map((channel) => el("li", {}, channelButton(channel, store, open)))),
  ];
}

function channelButton(channel, store, open) {
  const unread = store.unread.get(channel.id) ?? 0;
  const current = channel.id === store.channelId;
  const direct = channel.kind === "dm";
  const button = el(
    "button",
    { class: `rail-item ${unread ? "is-unread" : ""} ${channel.parent_id ? "is-thread" : ""}`, type: "button", "aria-current": current ? "page" : null },
    direct ? avatar(store.bot, "is-tiny") : icon(channel.parent_id ? "reply" : "hash"),
    el("span", { dir: "auto", text: direct ? (store.bot?.name ?? channel.name) : channel.name }),
    unread ? el("span", { class: "unread", "aria-label": `${unread} unread`, text: unread > 99 ? "99+" : String(unread) }) : null,
  );
  button.addEventListener("click", () => open(channel.id));
  return button;
}

function memberList(store) {
  const members = [...store.members.values()].sort((a, b) => Number(b.bot) - Number(a.bot) || Number(a.simulated) - Number(b.simulated));
  const rows = members.map((member) => {
    const online = member.bot ? store.botOnline : true;
    return el(
      "li",
      { class: `member ${online ? "" : "is-away"}` },
      el("span", { class: "presence" }, avatar(member, "is-small")),
      el("span", { class: "member-name", dir: "auto", text: shortName(member.name) }),
      member.bot && !online ? el("span", { class: "faint", text: "offline" }) : null,
      badges(member),
    );
  });
  return [
    el("h2", { class: "rail-title", id: "rail-members", text: `Members (${members.length})` }),
    el("ul", { "aria-labelledby": "rail-members" }, rows),
  ];
}

function createMemberPicker(store) {
  const menu = el("div", { class: "menu", popover: "auto", role: "menu", "aria-label": "Act as" });
  const button = el("button", { class: "actor", type: "button", "aria-haspopup": "menu", "aria-expanded": "false" });
  document.body.append(menu);

  const choices = () =>
    [...store.members.values()].filter((member) => !member.bot).map((member) => {
      const current = member.id === store.actorId;
      const choice = el(
        "button",
        { class: "menu-item", type: "button", role: "menuitemradio", "aria-checked": String(current), tabindex: "-1" },
        avatar(member, "is-small"),
        el("span", { class: "member-name", dir: "auto", text: shortName(member.name) }),
        member.operator ? el("span", { class: "badge", text: "operator" }) : null,
        badges(member),
        current ? icon("check") : null,
      );
      choice.addEventListener("click", () => {
        menu.hidePopover();
        store.actAs(member.id);
      });
      return choice;
    });

  button.addEventListener("click", () => {
    fill(menu, el("p", { class: "menu-title", text: "Act as" }), choices());
    menu.showPopover();
    const [at, own] = [button.getBoundingClientRect(), menu.getBoundingClientRect()];
    menu.style.left = `${at.left}px`;
    menu.style.top = `${Math.max(8, at.top - own.height - 8)}px`;
    menu.querySelector('[aria-checked="true"]')?.focus();
  });
  menu.addEventListener("toggle", (event) => {
    button.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "closed") button.focus();
  });
  menu.addEventListener("keydown", (event) => {
    const items = [...menu.querySelectorAll(".menu-item")];
    const at = items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    items[(to + items.length) % items.length].focus();
  });

  return {
    button,
    refresh() {
      const { actor } = store;
      button.setAttribute("aria-label", `Acting as ${actor?.name ?? "nobody"}. Choose another member`);
      fill(
        button,
        avatar(actor, "is-small"),
        el("span", { class: "actor-text" }, el("span", { class: "faint", text: "Acting as" }), el("span", { class: "actor-name", dir: "auto", text: shortName(actor?.name ?? "") })),
        icon("chevron"),
      );
    },
  };
}

function themeButton() {
  const button = el("button", { class: "icon-button", type: "button" });
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.setAttribute("aria-label", `Colours: ${theme}. Change`);
    button.title = `Colours: ${theme}`;
    fill(button, icon(THEME_ICONS[theme]));
  };
  let theme = THEMES.includes(memory.get("theme")) ? memory.get("theme") : "auto";
  show(theme);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    memory.set("theme", theme);
    show(theme);
  });
  return button;
}
