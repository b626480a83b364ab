/** Import: bring conversations from a file. Looked at first, then taken in; what was imported is listed and taken back. */

import { openDialog } from "./dialogs.js";
import { el, fill } from "./dom.js";
import { encoded } from "./files.js";
import { shortDay } from "./time.js";

const LARGEST_BYTES = 10 * 1024 * 1024;

/** Open the dialog. `actions` calls the playground, `announce(sentence)` shows a toast. */
export function openImports(actions, announce) {
  let token = null;
  const file = el("input", { type: "file", id: "import-file" });
  const encoding = el("input", { type: "text", id: "import-encoding", placeholder: "recognised by itself", autocomplete: "off" });
  const rights = el("input", { type: "text", id: "import-rights", placeholder: "our own support chats", autocomplete: "off" });
  const licence = el("input", { type: "text", id: "import-licence", placeholder: "CC-BY-4.0, or: our own", autocomplete: "off" });
  const preview = el("div", { class: "import-preview", role: "status" });
  const list = el("ul", { class: "import-list", "aria-label": "Imports" });
  const take = el("button", { class: "button is-primary", type: "button", disabled: true, text: "Import" });

  const look = async () => {
    token = null;
    take.disabled = true;
    const [chosen] = file.files;
    if (!chosen) return fill(preview);
    if (chosen.size > LARGEST_BYTES) return fill(preview, warning(`${chosen.name} is larger than 10 MB: \`strop import\` reads files of any size.`));
    fill(preview, el("p", { class: "faint", text: "Reading…" }));
    const found = await actions.lookAtImport(await encoded(chosen), encoding.value);
    if (!found) return fill(preview);
    token = found.token;
    take.disabled = !found.usable;
    fill(preview, render(found));
  };

  const takeIn = async () => {
    take.disabled = true;
    const done = await actions.takeIn(token, rights.value, licence.value);
    take.disabled = done === undefined ? token === null : true;
    if (done === undefined) return;
    announce(`Import ${done.import.id}: ${done.import.stored} new${done.import.known ? `, ${done.import.known} were there already` : ""}.`);
    token = null;
    file.value = "";
    fill(preview);
    await show();
  };

  const show = async () => {
    const answer = await actions.imports();
    if (answer) fill(list, answer.imports.map((each) => entry(each, takeBack)));
  };

  const takeBack = async (each, button) => {
    // A second press confirms: a dialog over this one would hide what it is about.
    if (!button.dataset.sure) {
      button.dataset.sure = "yes";
      button.textContent = "Really take it back?";
      return;
    }
    const removed = await actions.removeImport(each.id);
    if (removed === undefined) return;
    announce(`Import ${each.id} is taken back. Adapters that were trained on it and are gone: ${removed.adapters}.`);
    await show();
  };

  file.addEventListener("change", look);
  encoding.addEventListener("change", look);
  take.addEventListener("click", takeIn);
  openDialog({
    title: "Import conversations",
    wide: true,
    body: [
      el("p", { class: "faint", text: "Training files (messages, prompt and completion, preference pairs, ShareGPT, Alpaca, CSV), Strop's own exports, a channel's export, Discord's data package, or prompts with one a line. Nothing is stored before you press Import." }),
      field("File", file),
      field("Encoding", encoding),
      preview,
      field("By which right do you use it?", rights),
      field("Licence", licence),
      list,
    ],
    actions: [el("button", { class: "button", type: "submit", value: "", text: "Close" }), take],
  });
  show();
}

function field(label, control) {
  return el("div", { class: "field" }, el("label", { for: control.id, text: label }), control);
}

const warning = (text) => el("p", { class: "import-warning", text });

function render(found) {
  const guessed = found.encoding_guessed ? ", guessed: check the samples" : "";
  const rated = `${found.liked} likes, ${found.disliked} dislikes, ${found.pairs} better answers`;
  const splits = Object.entries(found.splits).map(([name, count]) => `${name} ${count}`).join(", ");
  return [
    el("p", {}, el("strong", { text: found.title }), el("span", { class: "faint", text: ` ${found.layout}, ${found.encoding}${guessed}` })),
    el("p", { text: found.prompts_only ? `${found.usable} prompts without answers: tastings ask them (/tasting), and members rate.` : `${found.usable} examples: ${found.imitated} to imitate, ${found.usable - found.imitated} rated (${rated}).` }),
    splits ? el("p", { class: "faint", text: `By split: ${splits}.` }) : null,
    el("ul", {}, found.left_out.map((each) => el("li", { class: "faint", text: `Left out: ${each.count} that ${each.reason}${each.first ? ` (the first: ${each.first})` : ""}.` }))),
    found.samples.map(sample),
  ];
}

function sample(each) {
  const line = (role, text) => el("p", { dir: "auto" }, el("span", { class: "badge", text: role }), ` ${text}`);
  return el("blockquote", { class: "import-sample" }, each.turns.map((turn) => line(turn.role, turn.content)), each.better ? line("better", each.better) : null);
}

function entry(each, takeBack) {
  const state = { running: "interrupted: import the file again to go on", removed: "taken back" }[each.state];
  const button = el("button", { class: "button is-small", type: "button", text: "Take back", "aria-label": `Take back import ${each.id}` });
  button.addEventListener("click", () => takeBack(each, button));
  return el(
    "li",
    { class: "import-entry" },
    el("span", { dir: "auto", text: `${each.id} · ${each.name} · ${each.stored} stored · ${each.licence}${state ? ` · ${state}` : ""}` }),
    el("span", { class: "faint", text: shortDay(new Date(each.created_ms)) }),
    each.state === "removed" ? null : button,
  );
}
