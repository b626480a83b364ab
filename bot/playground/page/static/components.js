/** Buttons, selects, embeds and files that a message carries. */

import { openDialog } from "./dialogs.js";
import { cssColor, el } from "./dom.js";
import { icon } from "./icons.js";
import { renderMarkdown } from "./markdown.js";

const BUTTON_STYLES = { 1: "is-primary", 2: "", 3: "is-success", 4: "is-danger", 5: "" };
const PRESSED_MS = 3_000;
const SHOWN_WIDTH = 550;
const SHOWN_HEIGHT = 400;
/** What the pictures on the bot's quiet buttons mean, in words; Discord shows none. */
const MEANINGS = {
  "🔄": "Write it again",
  "⏹️": "Stop writing",
  "✏️": "Write a better answer",
  "ℹ️": "Why this reply?",
  "◀️": "Earlier version",
  "▶️": "Later version",
  "👍": "Good reply",
  "👎": "Bad reply",
};
const safeLink = (address) => (/^https?:\/\//i.test(address ?? "") ? address : null);

/** The components of one message; `press(custom_id, values?)` tells the bot. */
export function renderComponents(components, { store, names, press }) {
  const context = { store, names, press };
  return components.map((component) => renderComponent(component, context)).filter(Boolean);
}

function renderComponent(component, context) {
  const inner = () => renderComponents(component.components ?? [], context);
  switch (component.type) {
    case 1:
      return el("div", { class: `component-row ${(component.components ?? []).every(isQuiet) ? "is-quiet" : ""}` }, inner());
    case 2:
      return button(component, context);
    case 3:
    case 5:
    case 8:
      return select(component, context);
    case 9:
      return el("div", { class: "component-section" }, el("div", {}, inner()), component.accessory && renderComponent(component.accessory, context));
    case 10:
      return el("div", { class: "content" }, renderMarkdown(component.content ?? "", context.names));
    case 14:
      return el("hr");
    case 17:
      return tinted(el("div", { class: "embed" }, inner()), component.accent_color);
    default:
      return null;
  }
}

/** A grey button that is mostly a picture: it stays in the background until one looks for it. */
function isQuiet(component) {
  return component.type === 2 && component.style === 2 && Boolean(component.emoji?.name);
}

function label(component) {
  const emoji = component.emoji?.name;
  return [emoji ? el("span", { class: "emoji", text: emoji }) : null, component.label ? el("span", { dir: "auto", text: component.label }) : null];
}

function button(component, { press }) {
  if (component.style === 5) {
    const address = safeLink(component.url);
    return address && el("a", { class: "button", href: address, target: "_blank", rel: "noopener noreferrer" }, label(component));
  }
  const node = el(
    "button",
    {
      class: `button ${BUTTON_STYLES[component.style] ?? ""}`,
      type: "button",
      disabled: component.disabled,
      data: { focusKey: focusKey(component.custom_id) },
      ...(isQuiet(component) ? quietProps(component) : {}),
    },
    label(component),
  );
  node.addEventListener("click", async () => {
    if (node.getAttribute("aria-busy")) return;
    // A second press before the bot has answered would be a second interaction.
    node.setAttribute("aria-busy", "true");
    setTimeout(() => node.removeAttribute("aria-busy"), PRESSED_MS);
    if ((await press(component.custom_id)) === undefined) node.removeAttribute("aria-busy");
  });
  return node;
}

/** Versions of a reply have ids of their own; the focus stays on the same action. */
function focusKey(customId) {
  return (customId ?? "").replace(/^(strop:reply:[a-z]+):.*/, "$1");
}

function quietProps(component) {
  const meaning = MEANINGS[component.emoji.name];
  const name = [meaning ?? component.emoji.name, component.label].filter(Boolean).join(", ");
  return { tabindex: "-1", title: meaning ?? null, "aria-label": name };
}

function options(component, store) {
  if (component.type === 5) return [...store.members.values()].map((member) => ({ value: member.id, label: member.name }));
  if (component.type === 8) return store.visibleChannels.map((channel) => ({ value: channel.id, label: `#${channel.name}` }));
  return component.options ?? [];
}

function select(component, { store, press }) {
  if ((component.max_values ?? 1) > 1) return checklist(component, { store, press });
  const node = el("select", {
    class: "select",
    disabled: component.disabled,
    "aria-label": component.placeholder ?? "Choose",
    data: { focusKey: component.custom_id },
  });
  node.append(el("option", { value: "", disabled: true, selected: true, text: component.placeholder ?? "Choose…" }));
  for (const option of options(component, store)) {
    node.append(el("option", { value: option.value, selected: option.default, text: option.label, title: option.description }));
  }
  node.addEventListener("change", () => press(component.custom_id, [node.value]));
  return node;
}

/** A menu of several choices: boxes to tick, sent together as Discord does when its menu closes. */
function checklist(component, { store, press }) {
  const boxes = options(component, store).map((option) => {
    const box = el("input", { type: "checkbox", value: option.value, checked: option.default, disabled: component.disabled });
    return el("label", { class: "check", title: option.description }, box, el("span", { dir: "auto", text: option.label }));
  });
  const apply = el("button", { class: "button", type: "button", disabled: component.disabled, text: "Apply", data: { focusKey: component.custom_id } });
  const node = el("fieldset", { class: "checklist" }, el("legend", { class: "faint", dir: "auto", text: component.placeholder ?? "Choose" }), boxes, apply);
  apply.addEventListener("click", () => {
    const ticked = [...node.querySelectorAll("input:checked")].map((box) => box.value);
    return press(component.custom_id, ticked);
  });
  return node;
}

function tinted(node, color) {
  const tint = cssColor(color);
  if (tint) node.style.setProperty("--tint", tint);
  return node;
}

/** A Discord embed: title, description, fields, footer. Images stay unloaded: the page makes no outside request. */
export function renderEmbed(embed, names) {
  const markdown = (text) => renderMarkdown(text, names);
  const address = safeLink(embed.url);
  const title = embed.title && el(address ? "a" : "p", { class: "embed-title", dir: "auto", href: address, rel: "noopener noreferrer", target: address && "_blank", text: embed.title });
  const fields = (embed.fields ?? []).map((entry) =>
    el(
      "div",
      { class: entry.inline ? "embed-field is-inline" : "embed-field" },
      el("p", { class: "embed-name", dir: "auto", text: entry.name }),
      el("div", { class: "content" }, markdown(entry.value)),
    ),
  );
  return tinted(
    el(
      "div",
      { class: "embed" },
      embed.author?.name && el("p", { class: "faint", dir: "auto", text: embed.author.name }),
      title,
      embed.description && el("div", { class: "content" }, markdown(embed.description)),
      fields.length ? el("div", { class: "embed-fields" }, fields) : null,
      embed.footer?.text && el("p", { class: "faint", dir: "auto", text: embed.footer.text }),
    ),
    embed.color,
  );
}

/** A file that the bot (or a member) attached: a picture is shown in place, anything else can be saved. */
export function renderAttachment(file) {
  const address = picturePath(file);
  return address ? picture(file, address) : savedFile(file);
}

/** Where the playground itself serves a picture; null for any other file, so that nothing is loaded from elsewhere. */
function picturePath(file) {
  if (!file.content_type?.startsWith("image/") || !file.width || !file.url) return null;
  const path = new URL(file.url, location.href).pathname;
  return path.startsWith("/attachments/") ? path : null;
}

/** A picture with its alt text; a press shows it larger, with the alt text for everybody to read. */
function picture(file, address) {
  // The size stands before the picture has come: nothing jumps when it does.
  const scale = Math.min(1, SHOWN_WIDTH / file.width, SHOWN_HEIGHT / file.height);
  const image = (factor) => el("img", { src: address, alt: file.description ?? file.filename, width: Math.round(file.width * factor), height: Math.round(file.height * factor), draggable: "false" });
  const node = el("button", { class: "picture", type: "button", title: "Show larger", data: { focusKey: address } }, image(scale));
  node.addEventListener("click", () => {
    const save = el("a", { class: "button", href: address, download: file.filename, text: "Save" });
    const words = file.description ? el("p", { class: "faint", dir: "auto", text: file.description }) : null;
    openDialog({ title: file.filename, body: [el("div", { class: "picture-large" }, image(1)), words], actions: [save], wide: true });
  });
  return node;
}

function savedFile(file) {
  const address = safeLink(file.url) ?? (file.url?.startsWith("/") ? file.url : null);
  const size = file.size >= 1024 ? `${(file.size / 1024).toFixed(1)} kB` : `${file.size ?? 0} bytes`;
  return el(
    address ? "a" : "span",
    { class: "attachment", href: address, download: address ? file.filename : null, rel: "noopener noreferrer" },
    icon("file"),
    el("span", { dir: "auto", text: file.filename }),
    el("span", { class: "faint", text: size }),
  );
}
