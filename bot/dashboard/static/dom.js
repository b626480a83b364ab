/** Building DOM without ever parsing text as markup. */

const SVG_NS = "http://www.w3.org/2000/svg";

/**
 * Create an element. `props`: `class`, `text`, `on` ({event: listener}), `data` ({key: value}), and any
 * other key as an attribute (`true` = present, `false`/`null` = absent). Children: nodes, strings, arrays, null.
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  apply(node, props);
  append(node, children);
  return node;
}

/** Create an SVG element; same rules as `el`. */
export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG_NS, tag);
  apply(node, props);
  append(node, children);
  return node;
}

function apply(node, props) {
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "class") node.setAttribute("class", value);
    else if (key === "on") for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child);
  }
}

/** Replace all children of `node`. */
export function fill(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

/** Run `work` at most once per animation frame, however often the returned function is called. */
export function oncePerFrame(work) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      work();
    });
  };
}

/** A safe CSS colour out of what the API sent (a number, "#rrggbb"), else null. */
export function cssColor(value) {
  if (typeof value === "number" && value > 0) return `#${value.toString(16).padStart(6, "0").slice(-6)}`;
  return typeof value === "string" && /^#[0-9a-f]{3,8}$/i.test(value) ? value : null;
}

/** Remembered between visits; private browsing may refuse, and then nothing is remembered. */
export const memory = {
  get(key) {
    try {
      return localStorage.getItem(`strop.${key}`);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`strop.${key}`, value);
    } catch {
      // Nothing depends on it.
    }
  },
};
