/** Discord's Markdown as DOM nodes. Text only ever becomes text nodes: markup in a message stays visible text. */

import { el } from "./dom.js";
import { full, relative, stamp } from "./time.js";

const PLAIN_ABOVE = 20_000;
const DEEPEST = 6;
const FENCE = /```(?:([\w+#.-]{1,20})\n)?\n?([\s\S]*?)(?:```|$)/g;
const ITEM = /^(\s*)([-*]|\d{1,9}[.)])\s+(.*)$/;
const PLAIN_RUN = /[^\\*_~`|<[h]+|[\s\S]/y;

/**
 * Render `text`. `names` answers ids: `{member(id), channel(id)}`, each a name or null.
 * An unclosed code fence is rendered as code, because a reply that is still streaming often has one.
 */
export function renderMarkdown(text, names) {
  const fragment = document.createDocumentFragment();
  if (text.length > PLAIN_ABOVE) {
    fragment.append(el("p", { dir: "auto", text }));
    return fragment;
  }
  let from = 0;
  for (const match of text.matchAll(FENCE)) {
    blocks(text.slice(from, match.index), names, fragment);
    fragment.append(fence(match[2], match[1]));
    from = match.index + match[0].length;
  }
  blocks(text.slice(from), names, fragment);
  return fragment;
}

function fence(code, language) {
  const pre = el("pre", { dir: "ltr", tabindex: "-1" }, el("code", { text: code.replace(/\n$/, "") }));
  if (language) pre.dataset.language = language;
  return pre;
}

function blocks(text, names, out) {
  const lines = text.split("\n");
  let paragraph = [];
  const flush = () => {
    const joined = paragraph.join("\n").replace(/^\n+|\n+$/g, "");
    if (joined.trim()) out.append(el("p", { dir: "auto" }, inline(joined, names)));
    paragraph = [];
  };
  for (let index = 0; index < lines.length; index += 1) {
    const line = lines[index];
    const heading = /^(#{1,3})\s+(\S.*)$/.exec(line);
    const small = /^-#\s+(\S.*)$/.exec(line);
    if (heading || small || /^>(>>)?\s/.test(line) || ITEM.test(line)) flush();
    if (heading) out.append(el("p", { class: `md-h${heading[1].length}`, dir: "auto" }, inline(heading[2], names)));
    else if (small) out.append(el("p", { class: "md-small", dir: "auto" }, inline(small[1], names)));
    else if (/^>>>\s/.test(line)) {
      quote([line.slice(4), ...lines.slice(index + 1)], names, out);
      return;
    } else if (/^>\s/.test(line)) {
      const run = takeWhile(lines, index, (entry) => /^>(\s|$)/.test(entry));
      quote(run.map((entry) => entry.slice(2)), names, out);
      index += run.length - 1;
    } else if (ITEM.test(line)) {
      const run = takeWhile(lines, index, (entry) => ITEM.test(entry));
      list(run.map((entry) => ITEM.exec(entry)), names, out);
      index += run.length - 1;
    } else paragraph.push(line);
  }
  flush();
}

function takeWhile(lines, from, test) {
  let to = from;
  while (to < lines.length && test(lines[to])) to += 1;
  return lines.slice(from, to);
}

function quote(lines, names, out) {
  out.append(el("blockquote", { dir: "auto" }, inline(lines.join("\n"), names)));
}

function list(items, names, out) {
  const ordered = /\d/.test(items[0][2]);
  const node = el(ordered ? "ol" : "ul", { dir: "auto", start: ordered ? parseInt(items[0][2], 10) : null });
  const base = items[0][1].length;
  for (const [, indent, , text] of items) {
    const nested = indent.length > base;
    node.append(el("li", { class: nested ? "md-nested" : null }, inline(text, names)));
  }
  out.append(node);
}

const RULES = [
  [/\\([\\*_~`|<>[\]()#\-+.!:@])/y, (m) => m[1]],
  [/(`+)([\s\S]*?[^`])\1(?!`)/y, (m) => el("code", { dir: "ltr", text: m[2].length > 2 ? m[2].replace(/^ (.*) $/, "$1") : m[2] })],
  [/\|\|([\s\S]+?)\|\|/y, (m, names, depth) => spoiler(inline(m[1], names, depth + 1))],
  [/\*\*(?=\S)([\s\S]+?)\*\*(?!\*)/y, (m, names, depth) => el("strong", {}, inline(m[1], names, depth + 1))],
  [/__(?=\S)([\s\S]+?)__(?!_)/y, (m, names, depth) => el("u", {}, inline(m[1], names, depth + 1))],
  [/~~(?=\S)([\s\S]+?)~~/y, (m, names, depth) => el("s", {}, inline(m[1], names, depth + 1))],
  [/\*(?=[^\s*])((?:\*\*|[^*])+?)\*(?!\*)/y, (m, names, depth) => el("em", {}, inline(m[1], names, depth + 1))],
  [/(?<!\w)_(?=[^\s_])((?:__|[^_])+?)_(?!\w)/y, (m, names, depth) => el("em", {}, inline(m[1], names, depth + 1))],
  [/<@!?(\d{1,20})>/y, (m, names) => el("span", { class: "mention", text: `@${names.member(m[1]) ?? "unknown member"}` })],
  [/<#(\d{1,20})>/y, (m, names) => el("span", { class: "mention", text: `#${names.channel(m[1]) ?? "unknown channel"}` })],
  [/<@&\d{1,20}>/y, () => el("span", { class: "mention", text: "@role" })],
  [/<\/([\w -]{1,100}):\d{1,20}>/y, (m) => el("span", { class: "mention", text: `/${m[1]}` })],
  [/<a?:(\w{2,32}):\d{1,20}>/y, (m) => `:${m[1]}:`],
  [/<t:(-?\d{1,12})(?::([tTdDfFR]))?>/y, (m) => moment(Number(m[1]), m[2])],
  [/\[([^[\]\n]{1,300})\]\((https?:\/\/[^\s()<>]{1,2000})\)/y, (m, names, depth) => link(m[2], inline(m[1], names, depth + 1))],
  [/<(https?:\/\/[^\s<>]{1,2000})>/y, (m) => link(m[1], m[1])],
  // Discord shows a link to a message as the place that it leads to; here that place is in this page.
  [/https:\/\/discord\.com\/channels\/(?:\d{1,20}|@me)\/(\d{1,20})\/(\d{1,20})/y, messageLink],
  [/https?:\/\/[^\s<>]{1,2000}/y, bareLink],
];

function inline(text, names, depth = 0) {
  if (depth > DEEPEST) return [text];
  const out = [];
  let plain = "";
  for (let at = 0; at < text.length; ) {
    const hit = firstHit(text, at);
    if (hit) {
      const [match, make] = hit;
      const node = make(match, names, depth);
      if (typeof node === "string") plain += node;
      else {
        if (plain) out.push(plain);
        plain = "";
        out.push(...[node].flat());
      }
      at += match[0].length;
    } else {
      PLAIN_RUN.lastIndex = at;
      const run = PLAIN_RUN.exec(text)[0];
      plain += run;
      at += run.length;
    }
  }
  if (plain) out.push(plain);
  return out;
}

function firstHit(text, at) {
  if (!"\\*_~`|<[h".includes(text[at])) return null;
  for (const [pattern, make] of RULES) {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match) return [match, make];
  }
  return null;
}

function spoiler(children) {
  const node = el("span", { class: "spoiler", role: "button", tabindex: "0", "aria-expanded": "false" });
  const hidden = el("span", { class: "spoiler-text", "aria-hidden": "true" }, children);
  node.setAttribute("aria-label", "Spoiler: show the hidden text");
  node.append(hidden);
  const reveal = (event) => {
    if (event.type === "keydown" && !["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    node.replaceWith(el("span", { class: "spoiler is-open" }, [...hidden.childNodes]));
  };
  node.addEventListener("click", reveal);
  node.addEventListener("keydown", reveal);
  return node;
}

function link(address, label) {
  return el("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }, label);
}

function messageLink(match, names) {
  const place = `#${names.channel(match[1]) ?? "unknown channel"} › message`;
  return el("button", { class: "mention", type: "button", data: { jump: match[2], channel: match[1] }, text: place });
}

function bareLink(match) {
  const trailing = /[.,:;!?"')\]]+$/.exec(match[0])?.[0] ?? "";
  const address = match[0].slice(0, match[0].length - trailing.length);
  return trailing ? [link(address, address), trailing] : link(address, address);
}

function moment(seconds, style) {
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return "an unknown time";
  const text = style === "R" ? relative(seconds - Date.now() / 1000) : stamp(date);
  return el("time", { datetime: date.toISOString(), title: full(date), text });
}

/** One line of text without its markup, for quote lines. */
export function plainLine(text, names) {
  const flat = text.replace(/```[\s\S]*?(```|$)/g, "code").replace(/\|\|[\s\S]+?\|\|/g, "▇▇▇").replace(/\s+/g, " ");
  return flat
    .replace(/<@!?(\d{1,20})>/g, (_, id) => `@${names.member(id) ?? "unknown member"}`)
    .replace(/<#(\d{1,20})>/g, (_, id) => `#${names.channel(id) ?? "unknown channel"}`)
    .replace(/(\*\*|__|~~|`)/g, "")
    .slice(0, 160);
}

/** Whether a message is nothing but a few emoji, which are shown large. */
export function isJumbo(text) {
  return text.length <= 40 && /^(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\uFE0F|\u200D|\s)+$/u.test(text) && /\S/.test(text);
}
