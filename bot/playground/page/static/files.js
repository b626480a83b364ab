/** Files that go along with a message: chosen, pasted or dropped, and a text that is too long to be a message. */

import { el, fill } from "./dom.js";
import { icon } from "./icons.js";

const MOST = 10;
const LARGEST_BYTES = 10 * 1024 * 1024;

/** Mounts the tray over `box`; `onChange()` is called when the files change, `refuse(sentence)` says what was left out. */
export function createFiles({ box, onChange, refuse }) {
  let chosen = [];
  const input = el("input", { type: "file", multiple: true, hidden: true, id: "composer-files" });
  const label = "Attach files";
  const button = el("button", { class: "icon-button", type: "button", "aria-label": label, title: label, on: { click: () => input.click() } }, icon("file"));
  const tray = el("ul", { class: "file-tray", hidden: true, "aria-label": "Files to send" });

  const show = () => {
    fill(tray, chosen.map((file) => el("li", { class: "attachment" }, el("span", { dir: "auto", text: file.name }), remover(file))));
    tray.hidden = chosen.length === 0;
    onChange();
  };
  const remover = (file) => {
    const drop = () => {
      chosen = chosen.filter((each) => each !== file);
      show();
    };
    return el("button", { class: "icon-button", type: "button", "aria-label": `Leave out ${file.name}`, on: { click: drop } }, icon("close"));
  };
  const add = (files) => {
    for (const file of files) {
      if (file.size > LARGEST_BYTES) refuse(`${file.name} is larger than 10 MB.`);
      else if (chosen.length >= MOST) refuse(`A message takes ${MOST} files.`);
      else chosen.push(file);
    }
    show();
  };

  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
  box.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  });
  box.addEventListener("dragover", (event) => event.preventDefault());
  box.addEventListener("drop", (event) => {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });

  return {
    button,
    input,
    tray,
    get count() {
      return chosen.length;
    },
    /** Empty the tray; `encoded()` gives the files as the playground takes them, `back()` puts them into the tray again. */
    take() {
      const files = chosen;
      chosen = [];
      show();
      return {
        encoded: () => Promise.all(files.map(encoded)),
        back: () => add(files),
      };
    },
  };
}

/** A text too long for a message becomes a file of its own, as at Discord. */
export const asFile = async (text) => ({ name: "message.txt", data: await base64(new Blob([text])) });

/** A file as the playground takes it. */
export const encoded = async (file) => ({ name: file.name, data: await base64(file) });

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let binary = "";
  for (let start = 0; start < bytes.length; start += 0x8000) binary += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  return btoa(binary);
}
