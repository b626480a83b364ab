/** Toasts for single errors, and the banner for a lost connection. */

import { el, fill } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = 7_000;
const MOST = 4;

/** Show one sentence for a few seconds; hovering or focusing it keeps it. `kind`: "error" | "info". */
export function toast(sentence, kind = "info") {
  const shelf = document.getElementById("toasts");
  // All else is inert, and lies behind it, while a modal dialog is open.
  (document.querySelector("dialog[open]") ?? document.body).append(shelf);
  const same = [...shelf.children].find((entry) => entry.dataset.sentence === sentence);
  same?.remove();
  const close = el("button", { class: "icon-button", type: "button", "aria-label": "Dismiss" }, icon("close"));
  const note = el("div", { class: `toast is-${kind}`, data: { sentence } }, el("p", { dir: "auto", text: sentence }), close);
  let timer = setTimeout(() => note.remove(), SHOWN_MS);
  const hold = () => clearTimeout(timer);
  const release = () => (timer = setTimeout(() => note.remove(), SHOWN_MS));
  close.addEventListener("click", () => note.remove());
  note.addEventListener("pointerenter", hold);
  note.addEventListener("focusin", hold);
  note.addEventListener("pointerleave", release);
  note.addEventListener("focusout", release);
  shelf.append(note);
  while (shelf.children.length > MOST) shelf.firstElementChild.remove();
}

/** The banner above the messages while the events socket is down. */
export function createBanner(onRetry) {
  const banner = document.getElementById("banner");
  let timer = null;

  return {
    /** Count down to `retryAtMs`. */
    down(retryAtMs) {
      const left = el("span", { "aria-hidden": "true" });
      const retry = el("button", { class: "button is-quiet", type: "button", text: "Try now", on: { click: onRetry } });
      fill(banner, icon("alert"), el("p", {}, "The connection to the playground is lost. ", left), retry);
      banner.hidden = false;
      clearInterval(timer);
      const tick = () => {
        const seconds = Math.ceil((retryAtMs - Date.now()) / 1000);
        left.textContent = seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again…";
      };
      tick();
      timer = setInterval(tick, 500);
    },
    up() {
      clearInterval(timer);
      banner.hidden = true;
    },
  };
}
