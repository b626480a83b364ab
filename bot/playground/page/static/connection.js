/** The page's only way to the playground: JSON calls and the events socket. */

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const CALL_TIMEOUT_MS = 20_000;

let secret = document.querySelector('meta[name="playground-secret"]').content;

/** A call the playground refused, or could not take; `message` is a sentence for people. */
export class CallError extends Error {}

/** The secret changes when the playground restarts; the page that is served now carries the current one. */
async function renewSecret() {
  const response = await fetch("/", { cache: "no-store" });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.querySelector('meta[name="playground-secret"]')?.content;
  const changed = Boolean(fresh) && fresh !== secret;
  if (fresh) secret = fresh;
  return changed;
}

async function attempt(method, path, body) {
  const headers = { "X-Playground-Secret": secret };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  return fetch(`/playground/${path}`, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
  });
}

/** Call the playground; returns the parsed JSON (or null). Raises CallError with the API's own sentence. */
export async function call(method, path, body) {
  let response;
  try {
    response = await attempt(method, path, body);
    if ([401, 403].includes(response.status) && (await renewSecret())) response = await attempt(method, path, body);
  } catch {
    throw new CallError("The playground does not answer. Is it still running?");
  }
  const text = await response.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    // Not JSON: an error page, reported by its status below.
  }
  if (!response.ok) throw new CallError(value?.error ?? `The playground refused this (${response.status}).`);
  return value;
}

/** The events socket: reconnects for ever, waiting longer each time up to ten seconds. */
export class EventStream {
  #socket = null;
  #failures = 0;
  #timer = null;

  /** `onFrame(frame)`, `onUp()`, `onDown(retryAtMs)`. */
  constructor({ onFrame, onUp, onDown }) {
    this.onFrame = onFrame;
    this.onUp = onUp;
    this.onDown = onDown;
    addEventListener("online", () => this.#timer && this.retryNow());
    // A page that comes back out of the browser's cache must not wait for a dead socket to time out.
    addEventListener("pageshow", (event) => event.persisted && this.retryNow());
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/playground/events`);
    let sawSnapshot = false;
    this.#socket = socket;
    socket.addEventListener("open", () => socket.send(JSON.stringify({ secret })));
    socket.addEventListener("message", (event) => {
      const frame = JSON.parse(event.data);
      this.onFrame(frame);
      if (!sawSnapshot && frame.t === "snapshot") {
        sawSnapshot = true;
        this.#failures = 0;
        this.onUp();
      }
    });
    socket.addEventListener("close", () => this.#onClose(socket));
  }

  #onClose(socket) {
    if (socket !== this.#socket) return;
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#failures) * (0.8 + 0.4 * Math.random());
    this.#failures += 1;
    this.onDown(Date.now() + wait);
    this.#timer = setTimeout(() => this.retryNow(), wait);
  }

  /** Reconnect at once. */
  async retryNow() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const old = this.#socket;
    this.#socket = null;
    old?.close();
    try {
      await renewSecret();
    } catch {
      // Still away: the socket fails as well, and waits.
    }
    if (!this.#socket) this.connect();
  }
}
