// Talking to the broker: calls, one stream in, an outbox out.
//
// Nothing here knows of the page, so this is the file to copy from. The three
// ideas in it:
//
//   1. The stream's cursor is the id of its last event. The browser sends it back
//      by itself when it reconnects; where the browser gives up, Feed does it.
//   2. A message is sent under a key (Idempotency-Key) and sent again under the
//      same key until the broker answers. However often, it is kept once.
//   3. The order is the stream's. What was sent is not shown as said before the
//      stream brings it back.

const ROOT = new URL("../v1/", document.baseURI); // beside the page, behind any proxy
const CALL_MILLISECONDS_MAX = 10_000;
const LOST_AFTER_MILLISECONDS = 20_000;
const TEMPORARY = new Set([408, 429, 502, 503, 504]);

/** The broker said no, or (status 0) did not answer at all. */
export class Problem extends Error {
  constructor(status, { code = "", detail = "", title = "" } = {}, retryAfter = 0) {
    super(detail || title || `The broker answered with status ${status}.`);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter; // seconds
  }

  /** Whether the same request may well succeed in a moment. */
  get temporary() {
    return this.status === 0 || TEMPORARY.has(this.status);
  }
}

/** Call the API; the answer's JSON. Throws Problem. */
export async function call(method, path, body, headers = {}) {
  let response;
  try {
    response = await fetch(new URL(path, ROOT), {
      method,
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body,
      cache: "no-store",
      signal: AbortSignal.timeout(CALL_MILLISECONDS_MAX),
    });
    if (response.ok) return response.status === 204 ? null : await response.json();
  } catch {
    throw new Problem(0, { detail: "The broker does not answer." });
  }
  const problem = await response.json().catch(() => ({})); // a proxy may answer with a page
  throw new Problem(response.status, problem ?? {}, Number(response.headers.get("Retry-After")) || 0);
}

/** The items of a paged list, page by page. */
export async function* pages(path, query, member) {
  for (let after = query.after; ; ) {
    const parameters = new URLSearchParams(after === undefined ? query : { ...query, after });
    const page = await call("GET", `${path}?${parameters}`);
    yield { items: page[member] ?? [], gap: page.gap === true };
    if (page.next === null || page.next === undefined) return;
    after = page.next;
  }
}

/** The URL of a stream, for EventSource and for showing. */
export function streamUrl(filter, after) {
  const url = new URL("events", ROOT);
  url.searchParams.set("topic", filter);
  if (after) url.searchParams.set("after", after);
  return url.href.replaceAll("%2A", "*");
}

export function messagesUrl(topic) {
  return new URL(`topics/${topic}/messages`, ROOT).href;
}

/** A random UUID. crypto.randomUUID exists in secure contexts only, and plain HTTP on a LAN is none. */
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** A longer wait with each attempt, and not the same for everybody. */
function backoff(attempt, first, most) {
  return Math.min(most, first * 1.7 ** attempt) * (0.7 + 0.6 * Math.random());
}

/**
 * One event stream that never gives up.
 *
 * `on.state(state)`: "connecting" at first, then "live", "reconnecting", and
 * "lost" when that lasts. `on.subscribed(data)`, `on.message(message)`,
 * `on.gap(data)`, `on.deleted(data)`: the events, in order.
 */
export class Feed {
  #filter;
  #on;
  #source = null;
  #attempt = 0;
  #timer = 0;
  #lostTimer = 0;
  cursor = null; // the id of the last event
  state = "";

  constructor(filter, on) {
    this.#filter = filter;
    this.#on = on;
  }

  /** Connect; or, if connected or waiting, do so afresh and at once. */
  open() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#setState(this.cursor ? "reconnecting" : "connecting");
    // A new EventSource cannot send Last-Event-ID, hence the cursor in the URL. When
    // the browser reconnects by itself, its Last-Event-ID wins over this `after`.
    const source = new EventSource(streamUrl(this.#filter, this.cursor ?? "latest"));
    const hear = (name, handler) =>
      source.addEventListener(name, (event) => {
        this.cursor = event.lastEventId || this.cursor;
        handler(parse(event.data));
      });
    hear("subscribed", (data) => this.#subscribed(data));
    hear("message", (data) => this.#on.message(data));
    hear("gap", (data) => this.#on.gap(data));
    hear("topic-deleted", (data) => this.#on.deleted(data));
    source.onerror = () => this.#failed();
    this.#source = source;
  }

  #subscribed(data) {
    this.#attempt = 0;
    this.#setState("live");
    this.#on.subscribed(data ?? {});
  }

  #failed() {
    this.#setState(this.cursor ? "reconnecting" : "connecting");
    // A broken connection is the browser's to mend. After an answer other than 200
    // (503 while the broker starts or drains) it is CLOSED for good: mend it here.
    if (this.#source.readyState !== EventSource.CLOSED) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.open(), backoff(this.#attempt++, 1000, 15_000));
  }

  #setState(state) {
    if (state === "live") {
      clearTimeout(this.#lostTimer);
      this.#lostTimer = 0;
    } else {
      if (this.state === "lost") return; // it stays lost until it is live
      this.#lostTimer ||= setTimeout(() => this.#change("lost"), LOST_AFTER_MILLISECONDS);
    }
    this.#change(state);
  }

  #change(state) {
    if (state === this.state) return;
    this.state = state;
    this.#on.state(state);
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * What this window has to say, in order, one at a time.
 *
 * An item is {uuid, topic, data, state, detail}; its state is "waiting", "kept"
 * (acknowledged: it will come on the stream) or "refused". Items that are not yet
 * kept outlive a reload, in `storage`.
 */
export class Outbox {
  #storage;
  #changed;
  #prepare;
  #running = false;
  #wake = () => {};
  items = [];

  /** `changed()` is called after every change; `prepare(topic)` before a message is sent there. */
  constructor({ storage, changed, prepare }) {
    this.#storage = storage;
    this.#changed = changed;
    this.#prepare = prepare;
    this.items = restore(storage);
  }

  add(topic, data) {
    const key = uuid();
    this.items.push({ uuid: key, topic, data: { ...data, uuid: key }, state: "waiting", detail: "" });
    this.#save();
    this.run();
  }

  /** The stream brought a message: if it was one of ours, it is done. */
  arrived(key) {
    const item = this.items.find((item) => item.uuid === key);
    if (!item) return;
    // Nobody waits for the answer any more; it still comes, and finds the item gone.
    this.items = this.items.filter((other) => other !== item);
    this.#save();
  }

  /** Forget what was kept but cannot come any more: the history that it was in is gone. */
  forgetKept(topic) {
    this.items = this.items.filter((item) => item.state !== "kept" || (topic && item.topic !== topic));
    this.#save();
  }

  discard(item) {
    this.items = this.items.filter((other) => other !== item);
    this.#save();
  }

  again(item) {
    item.state = "waiting";
    item.detail = "";
    this.#save();
    this.run();
  }

  /** Send what waits; if a pause is on, end it: the broker is back. */
  run() {
    this.#wake();
    if (!this.#running) this.#sendAll();
  }

  async #sendAll() {
    this.#running = true;
    // One after the other: a second message must not overtake a first that is repeated.
    for (let item; (item = this.items.find(({ state }) => state === "waiting")); ) {
      await this.#sendOne(item);
      this.#save();
    }
    this.#running = false;
  }

  async #sendOne(item) {
    for (let attempt = 0; item.state === "waiting"; attempt++) {
      try {
        await this.#prepare(item.topic);
        const path = `topics/${item.topic}/messages`;
        await call("POST", path, JSON.stringify(item.data), { "Idempotency-Key": item.uuid });
        item.state = "kept";
      } catch (problem) {
        item.detail = problem.message;
        if (!problem.temporary) item.state = "refused";
        else await this.#pause(problem.retryAfter * 1000 || backoff(attempt, 400, 5000));
      }
    }
  }

  #pause(milliseconds) {
    this.#changed();
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, Math.min(milliseconds, 10_000));
    });
  }

  #save() {
    const unsent = this.items.filter(({ state }) => state !== "kept");
    this.#storage.setItem("outbox", JSON.stringify(unsent));
    this.#changed();
  }
}

function restore(storage) {
  const items = parse(storage.getItem("outbox") ?? "");
  return Array.isArray(items) ? items : [];
}
