/** The slash-command palette: "/" lists what the bot has registered; picking one opens its options as fields. */

import { el, fill } from "./dom.js";
import { encoded } from "./files.js";
import { icon } from "./icons.js";

const AUTOCOMPLETE_AFTER_MS = 200;
const TYPE = { SUBCOMMAND: 1, GROUP: 2, STRING: 3, INTEGER: 4, BOOLEAN: 5, USER: 6, CHANNEL: 7, MENTIONABLE: 9, NUMBER: 10, FILE: 11 };

/** Registered commands as what can be run: one entry a subcommand. */
export function runnable(commands) {
  return commands.filter((command) => (command.type ?? 1) === 1).flatMap((command) => expand(command));
}

function expand(command) {
  const nested = (command.options ?? []).filter((option) => option.type <= TYPE.GROUP);
  if (!nested.length) return [entry(command, null, command)];
  return nested.flatMap((option) =>
    option.type === TYPE.SUBCOMMAND
      ? [entry(command, option.name, option)]
      : (option.options ?? []).map((inner) => entry(command, `${option.name} ${inner.name}`, inner)),
  );
}

function entry(command, subcommand, source) {
  const title = subcommand ? `${command.name} ${subcommand}` : command.name;
  return { name: command.name, subcommand, title, description: source.description || command.description || "", options: source.options ?? [] };
}

/** Mounts the palette over the composer; `panel` is its element. */
export function createPalette({ store, actions, composer }) {
  const list = el("ul", { class: "palette-list", role: "listbox", id: "palette-list", "aria-label": "Commands" });
  const panel = el("div", { class: "palette", hidden: true });
  let matches = [];
  let chosen = 0;

  const input = composer.input;
  input.setAttribute("role", "combobox");
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-controls", "palette-list");
  input.setAttribute("aria-expanded", "false");

  const close = () => {
    panel.hidden = true;
    panel.replaceChildren();
    matches = [];
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };

  const choose = (index) => {
    chosen = (index + matches.length) % matches.length;
    [...list.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === chosen)));
    const active = list.children[chosen];
    active.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", active.id);
  };

  const item = (command, index) => {
    const needs = command.options.filter((option) => option.required).map((option) => el("span", { class: "option-chip", text: option.name }));
    const node = el(
      "li",
      { id: `palette-${index}`, role: "option", "aria-selected": "false" },
      el("span", { class: "palette-name" }, `/${command.title}`, needs),
      el("span", { class: "palette-about", dir: "auto", text: command.description }),
    );
    node.addEventListener("pointerdown", (event) => event.preventDefault());
    node.addEventListener("pointermove", () => chosen !== index && choose(index));
    node.addEventListener("click", () => open(command));
    return node;
  };

  /** Show what matches `text`; closes by itself when it is no command. */
  const suggest = (text) => {
    if (!/^\/[^\n]{0,60}$/.test(text)) return close();
    const wanted = text.slice(1).trim().toLowerCase();
    // As Discord does: what a member may not use isn't offered.
    const all = runnable(store.commands.filter((command) => !command.default_member_permissions || store.actor?.operator));
    const starting = all.filter((command) => command.title.startsWith(wanted));
    const containing = all.filter((command) => !command.title.startsWith(wanted) && command.title.includes(wanted));
    matches = [...starting, ...containing];
    if (!matches.length && text.includes(" ")) return close();
    fill(list, matches.map(item));
    const empty = store.commands.length ? "No command of that name." : "Strop has not registered its commands yet.";
    fill(panel, matches.length ? list : el("p", { class: "faint palette-empty", text: empty }));
    panel.hidden = false;
    input.setAttribute("aria-expanded", "true");
    if (matches.length) choose(0);
  };

  /** The option fields of one command, in place of the list. */
  const open = (command) => {
    composer.clear();
    const form = commandForm(command, store, {
      run: async (options) => {
        const done = await actions.command(command.name, { subcommand: command.subcommand, options });
        if (done !== undefined) leave();
      },
      complete: (option, value) => actions.complete(command.name, command.subcommand, option, value),
      leave: () => leave(),
    });
    fill(panel, form);
    panel.hidden = false;
    form.querySelector("input, select, textarea, [type=submit]").focus();
  };

  const leave = () => {
    close();
    composer.focus();
  };

  /** Keys of the message box while the list is open; true if the palette took one. */
  const onKey = (event) => {
    if (panel.hidden) return false;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const picks = ["Enter", "Tab"].includes(event.key) && !event.shiftKey;
    if (step && matches.length) choose(chosen + step);
    else if (picks && matches.length) open(matches[chosen]);
    else if (event.key === "Escape") leave();
    else return false;
    event.preventDefault();
    return true;
  };

  store.on("commands", () => !panel.hidden && !panel.querySelector("form") && suggest(input.value));
  return { panel, suggest, onKey, close };
}

function commandForm(command, store, { run, complete, leave }) {
  const title = el("h3", { id: "command-title" }, `/${command.title}`);
  const cancel = el("button", { class: "icon-button", type: "button", "aria-label": "Cancel the command", on: { click: leave } }, icon("close"));
  const fields = [...command.options].sort((a, b) => Number(b.required ?? false) - Number(a.required ?? false));
  const submit = el("button", { class: "button is-primary", type: "submit", text: "Run" });
  const form = el(
    "form",
    { class: "command-form", "aria-labelledby": "command-title" },
    el("div", { class: "command-head" }, title, el("p", { class: "faint", dir: "auto", text: command.description }), cancel),
    fields.length ? el("div", { class: "command-fields" }, fields.map((option) => optionField(option, store, complete))) : null,
    el("div", { class: "command-actions" }, el("span", { class: "faint", text: "Enter runs, Escape cancels" }), submit),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    await run(await readOptions(form, fields));
    submit.disabled = false;
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    leave();
  });
  return form;
}

function optionField(option, store, complete) {
  const id = `option-${option.name}`;
  const control = optionControl(option, store);
  control.id = id;
  control.name = option.name;
  control.required = Boolean(option.required);
  control.title = option.description ?? "";
  const suggestions = option.autocomplete ? autocompleted(control, option, complete) : null;
  return el(
    "div",
    { class: "field" },
    el("label", { for: id }, option.name, option.required ? null : el("span", { class: "faint", text: " optional" })),
    control,
    suggestions,
    option.description ? el("p", { class: "faint", dir: "auto", text: option.description }) : null,
  );
}

/** Offer what the bot suggests for the text so far; the field still takes anything. */
function autocompleted(control, option, complete) {
  const list = el("datalist", { id: `${control.id}-list` });
  let timer = null;
  const ask = async () => {
    const asked = control.value;
    const answer = await complete(option.name, asked);
    // A slower answer to an earlier text must not replace the suggestions for this one.
    if (control.value !== asked) return;
    fill(list, (answer?.choices ?? []).map((choice) => el("option", { value: String(choice.value), label: choice.name })));
  };
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(ask, AUTOCOMPLETE_AFTER_MS);
  };
  control.setAttribute("list", list.id);
  control.addEventListener("input", later);
  control.addEventListener("focus", later, { once: true });
  return list;
}

function optionControl(option, store) {
  if (option.choices?.length) return chooser(option.choices.map((choice) => [String(choice.value), choice.name]));
  switch (option.type) {
    case TYPE.BOOLEAN:
      return chooser([["true", "Yes"], ["false", "No"]]);
    case TYPE.USER:
    case TYPE.MENTIONABLE:
      return chooser([...store.members.values()].map((member) => [member.id, member.name]));
    case TYPE.CHANNEL:
      return chooser(store.channels.filter((channel) => channel.kind === "text").map((channel) => [channel.id, `#${channel.name}`]));
    case TYPE.FILE:
      return el("input", { type: "file" });
    case TYPE.INTEGER:
    case TYPE.NUMBER:
      return el("input", { type: "number", step: option.type === TYPE.INTEGER ? 1 : "any", min: option.min_value, max: option.max_value });
    default:
      return el("input", { type: "text", dir: "auto", autocomplete: "off", minlength: option.min_length, maxlength: option.max_length ?? 6000 });
  }
}

function chooser(pairs) {
  return el("select", { class: "select" }, el("option", { value: "", text: "Choose…" }), pairs.map(([value, text]) => el("option", { value, text })));
}

async function readOptions(form, fields) {
  const values = {};
  for (const option of fields) {
    const control = form.elements.namedItem(option.name);
    const raw = control.value;
    if (raw === "") continue;
    if (option.type === TYPE.FILE) values[option.name] = await encoded(control.files[0]);
    else if (option.type === TYPE.INTEGER || option.type === TYPE.NUMBER) values[option.name] = Number(raw);
    else if (option.type === TYPE.BOOLEAN) values[option.name] = raw === "true";
    else values[option.name] = raw;
  }
  return values;
}
