/** Dialogs: a question to confirm, and the modals that the bot opens. */

import { el } from "./dom.js";
import { icon } from "./icons.js";

/** Open a `<dialog>` with a title and content; resolves to its return value when it closes ("" = cancelled). */
export function openDialog({ title, body, actions, wide = false }) {
  const form = el("form", { method: "dialog", class: "dialog-form" });
  const close = el("button", { class: "icon-button", type: "button", "aria-label": "Close" }, icon("close"));
  const dialog = el("dialog", { class: wide ? "dialog is-wide" : "dialog", "aria-labelledby": "dialog-title" }, form);
  form.append(
    el("div", { class: "dialog-head" }, el("h2", { id: "dialog-title", dir: "auto", text: title }), close),
    el("div", { class: "dialog-body" }, body),
    el("div", { class: "dialog-actions" }, actions),
  );
  close.addEventListener("click", () => dialog.close(""));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close(""));
  document.body.append(dialog);
  const closed = new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      // Toasts that it holds outlive it.
      const toasts = dialog.querySelector("#toasts");
      if (toasts) document.body.append(toasts);
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
  dialog.showModal();
  return { dialog, form, closed };
}

/** Ask before something that is hard to take back; resolves to true if confirmed. */
export async function confirmDialog({ title, body, confirm, danger = false }) {
  const { closed } = openDialog({
    title,
    body: el("p", { text: body }),
    actions: [
      el("button", { class: "button", value: "", type: "submit", formnovalidate: true, text: "Cancel" }),
      el("button", { class: `button ${danger ? "is-danger" : "is-primary"}`, value: "yes", type: "submit", text: confirm }),
    ],
  });
  return (await closed) === "yes";
}

/** Show a modal that the bot opened, in Discord's shape, and hand its values to `submit(values)`. */
export async function openModal(modal, submit) {
  const fields = textInputs(modal.components ?? []);
  const { dialog, form, closed } = openDialog({
    title: modal.title,
    body: fields.map(field),
    actions: [
      el("button", { class: "button", type: "submit", value: "", formnovalidate: true, text: "Cancel" }),
      el("button", { class: "button is-primary", type: "submit", value: "submit", text: "Submit" }),
    ],
  });
  dialog.addEventListener("keydown", (event) => {
    const inLine = event.target instanceof HTMLInputElement;
    if (event.key === "Enter" && (inLine || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit(form.querySelector('[value="submit"]'));
    }
  });
  if ((await closed) !== "submit") return;
  const values = Object.fromEntries(fields.map(({ custom_id }) => [custom_id, form.elements.namedItem(custom_id).value]));
  await submit(values);
}

/** Text inputs out of action rows (type 1) and labels (type 18), which carry the label themselves. */
function textInputs(components) {
  return components.flatMap((component) => {
    if (component.type === 4) return [component];
    if (component.type === 18) return [{ ...component.component, label: component.label, hint: component.description }];
    return textInputs(component.components ?? []);
  });
}

function field(input, index) {
  const id = `modal-field-${index}`;
  const long = input.style === 2;
  const control = el(long ? "textarea" : "input", {
    id,
    name: input.custom_id,
    dir: "auto",
    rows: long ? 5 : null,
    type: long ? null : "text",
    required: input.required !== false,
    minlength: input.min_length,
    maxlength: input.max_length ?? 4000,
    placeholder: input.placeholder,
    autocomplete: "off",
    autofocus: index === 0,
  });
  control.value = input.value ?? "";
  const optional = input.required === false ? el("span", { class: "faint", text: " optional" }) : null;
  return el(
    "div",
    { class: "field" },
    el("label", { for: id }, el("span", { dir: "auto", text: input.label ?? input.custom_id }), optional),
    input.hint ? el("p", { class: "faint", dir: "auto", text: input.hint }) : null,
    control,
  );
}
