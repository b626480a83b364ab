/** The loop as a strip of leather: five stations, and the blade lies where the loop is now. */

import { el } from "./dom.js";
import { mark } from "./icons.js";

const STATIONS = ["Chat", "Rate", "Train", "Judge", "Swap"];
const STATION_OF_PHASE = { snapshot: 2, train: 2, evaluate: 3, decide: 3, votes: 3, swap: 4 };

function station(loop) {
  if (loop.run) return STATION_OF_PHASE[loop.run.phase] ?? 2;
  if (loop.duels?.open) return 3;
  return (loop.ratings?.liked ?? 0) + (loop.ratings?.disliked ?? 0) > 0 ? 1 : 0;
}

/** The strip for a loop state. */
export function renderStrap(loop) {
  const at = station(loop);
  const steps = STATIONS.map((name, index) => el("li", { class: index === at ? "is-here" : "", "aria-current": index === at ? "step" : null, text: name }));
  const blade = el("span", { class: `strap-blade ${loop.run ? "is-moving" : ""}`, "aria-hidden": "true" }, mark());
  const strap = el("div", { class: "strap" }, el("ol", { "aria-label": "Where the loop is now" }, steps), blade);
  blade.style.setProperty("--at", String(at));
  return strap;
}
