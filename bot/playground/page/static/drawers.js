/** Where the window is too narrow for them, the rail and the loop panel become drawers. */

const NARROW = { rail: "(max-width: 820px)", loop: "(max-width: 1180px)" };

/** `open(side)` and `close()`; both do nothing for a side that is simply in view. */
export function createDrawers() {
  const scrim = document.getElementById("scrim");
  const queries = Object.fromEntries(Object.entries(NARROW).map(([side, query]) => [side, matchMedia(query)]));
  const panels = Object.fromEntries(Object.keys(NARROW).map((side) => [side, document.getElementById(side)]));
  let opened = null;
  let opener = null;

  const settle = () => {
    for (const side of Object.keys(NARROW)) {
      const isOpen = opened === side;
      const hidden = queries[side].matches && !isOpen;
      panels[side].classList.toggle("is-open", isOpen);
      panels[side].inert = hidden;
      document.querySelector(`.toggle-${side}`)?.setAttribute("aria-expanded", String(isOpen));
    }
    document.getElementById("stage").inert = opened !== null;
    scrim.hidden = opened === null;
  };

  const close = () => {
    if (!opened) return;
    opened = null;
    settle();
    opener?.focus();
  };

  const open = (side) => {
    if (!queries[side].matches) return;
    opener = document.activeElement;
    opened = side;
    settle();
    panels[side].querySelector("button, [href], input")?.focus();
  };

  scrim.addEventListener("click", close);
  document.addEventListener("keydown", (event) => event.key === "Escape" && opened && !document.querySelector("dialog[open], :popover-open") && close());
  for (const side of Object.keys(NARROW)) {
    queries[side].addEventListener("change", () => {
      if (opened === side && !queries[side].matches) opened = null;
      settle();
    });
  }
  settle();
  return { open, close };
}
