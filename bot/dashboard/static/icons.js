/** The page's own icons: 20 x 20, drawn with the current text colour. */

import { svg } from "./dom.js";

const STROKES = {
  hash: "M7.5 3.5 6 16.5M14 3.5l-1.5 13M3.5 7.5h13M3 12.5h13",
  at: "M13 10a3 3 0 1 1-6 0 3 3 0 0 1 6 0Zm0 0v1.2a2 2 0 0 0 4 0V10a7 7 0 1 0-3 5.75",
  reply: "M8 5 3.5 9.5 8 14M4 9.5h7.5a5 5 0 0 1 5 5V16",
  pencil: "m4 16 .8-3.5L13.3 4a1.6 1.6 0 0 1 2.3 0l.4.4a1.6 1.6 0 0 1 0 2.3L7.5 15.2 4 16Z",
  trash: "M4 5.5h12M8 5.5V4h4v1.5M5.5 5.5 6.3 16h7.4l.8-10.5M8.5 8.5v4.5M11.5 8.5v4.5",
  smile: "M17 10a7 7 0 1 1-14 0 7 7 0 0 1 14 0ZM7 12a3.6 3.6 0 0 0 6 0M7.6 8v.01M12.4 8v.01",
  send: "M3.5 10 16.5 4l-4 12.5-3-5.5-6-1Z",
  menu: "M3 5.5h14M3 10h14M3 14.5h14",
  close: "m5 5 10 10M15 5 5 15",
  chevron: "m5 8 5 5 5-5",
  check: "m4.5 10.5 3.7 3.7 7.3-8.2",
  down: "M10 4v11.5M5 11l5 5 5-5",
  undo: "M7 4.5 3.5 8 7 11.5M4 8h8a4.5 4.5 0 0 1 0 9H8",
  people: "M7.5 9.5a2.7 2.7 0 1 0 0-5.4 2.7 2.7 0 0 0 0 5.4ZM2.5 16a5 5 0 0 1 10 0M13 4.4a2.6 2.6 0 0 1 0 5M14.5 11.5A5 5 0 0 1 17.5 16",
  tray: "M10 3v8.5M6.5 8.5 10 12l3.5-3.5M3.5 12.5V16h13v-3.5",
  auto: "M10 3a7 7 0 1 0 0 14V3Z",
  sun: "M13 10a3 3 0 1 1-6 0 3 3 0 0 1 6 0ZM10 2.5V4M10 16v1.5M2.5 10H4M16 10h1.5M4.7 4.7l1 1M14.3 14.3l1 1M4.7 15.3l1-1M14.3 5.7l1-1",
  moon: "M16 12.3A6.7 6.7 0 0 1 7.7 4a6.7 6.7 0 1 0 8.3 8.3Z",
  loop: "M4 9a6 6 0 0 1 10.5-3.2L16.5 8M16.5 4v4h-4M16 11a6 6 0 0 1-10.5 3.2L3.5 12M3.5 16v-4h4",
  eye: "M2.5 10S5.2 5 10 5s7.5 5 7.5 5-2.7 5-7.5 5-7.5-5-7.5-5ZM12 10a2 2 0 1 1-4 0 2 2 0 0 1 4 0Z",
  file: "M6 3h5.5L15 6.5V17H6V3ZM11 3v4h4",
  apps: "M4 4h4.5v4.5H4V4ZM11.5 4H16v4.5h-4.5V4ZM4 11.5h4.5V16H4v-4.5ZM13.75 11v6M10.75 14h6",
  slash: "M12.5 3.5l-5 13",
  alert: "M10 3.5 17.5 16.5h-15L10 3.5ZM10 8.5v3.5M10 14.3v.01",
};

/** A decorative icon by name; the control around it carries the accessible name. */
export function icon(name) {
  return svg(
    "svg",
    { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: STROKES[name] }),
  );
}

/** The mark: a strip of leather with a blade drawn across it. */
export function mark() {
  return svg(
    "svg",
    { class: "mark", viewBox: "0 0 32 32", "aria-hidden": "true", focusable: "false" },
    svg("path", {
      class: "mark-leather",
      d: "M11 3h7.5A1.5 1.5 0 0 1 20 4.5v23a1 1 0 0 1-1.6.8l-3.65-2.7-3.65 2.7a1 1 0 0 1-1.6-.8v-23A1.5 1.5 0 0 1 11 3Z",
    }),
    svg("path", { class: "mark-stitch", d: "M12.3 6v16.5M17.2 6v16.5" }),
    svg("path", {
      class: "mark-steel",
      d: "M3.2 20.8 27.1 7c1.1-.6 2.3.6 1.7 1.7-1 1.7-2.7 3.3-4.8 4.5L5 24.1Z",
    }),
    svg("path", { class: "mark-tang", d: "m3.2 20.8 1.8 3.3" }),
  );
}
