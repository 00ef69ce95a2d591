// What this window has to say, in order, one at a time, until the broker has it.
//
// The client tries again by itself, at each node, for half a minute. What it cannot do is
// outlive that, or a reload of the page: so what was said stays here, under the key that it
// was first sent with (Idempotency-Key). However often it is sent, it is kept once.

import { ConnectionError } from "../client.js";

const AGAIN_MS = 2000; // the client may give up at once, if it is told to wait for longer than it would

/**
 * An item is {uuid, topic, data, state, detail}; its state is "waiting", "kept"
 * (acknowledged: it will come on the stream) or "refused". Items that are not yet
 * kept outlive a reload, in `storage`.
 */
export class Outbox {
  #storage;
  #changed;
  #publish;
  #running = false;
  #attempt = new AbortController();
  items = [];

  /** `publish(item, signal)` resolves when it is kept; `changed()` is called after every change. */
  constructor({ storage, changed, publish }) {
    this.#storage = storage;
    this.#changed = changed;
    this.#publish = publish;
    this.items = restore(storage);
  }

  add(topic, data) {
    const key = randomKey();
    this.items.push({ uuid: key, topic, data: { ...data, uuid: key }, state: "waiting", detail: "" });
    this.#save();
    this.run();
  }

  /** The stream brought a message: if it was one of ours, it is done. */
  arrived(key) {
    const item = this.items.find((item) => item.uuid === key);
    if (!item) return;
    // Nobody waits for the answer any more; it still comes, and finds the item gone.
    this.discard(item);
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

  /** Send what waits. */
  run() {
    if (!this.#running) this.#sendAll();
  }

  /** The broker is back: do not wait for the next attempt, make it. */
  hurry() {
    this.#attempt.abort();
    this.run();
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
    const { signal } = (this.#attempt = new AbortController());
    try {
      await this.#publish(item, signal);
      item.state = "kept";
    } catch (error) {
      // No answer, or one that may be another in a moment: it waits, under its key.
      if (error.name === "AbortError" || error instanceof ConnectionError) return pause(AGAIN_MS, signal);
      item.state = "refused";
      item.detail = error.message;
    }
  }

  #save() {
    const unsent = this.items.filter(({ state }) => state !== "kept");
    this.#storage.setItem("outbox", JSON.stringify(unsent));
    this.#changed();
  }
}

/** Until `ms` have passed, or `signal` aborts. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    setTimeout(resolve, ms);
    signal.addEventListener("abort", resolve);
  });
}

function restore(storage) {
  try {
    const items = JSON.parse(storage.getItem("outbox"));
    return Array.isArray(items) ? items : [];
  } catch {
    return [];
  }
}

/** 128 random bits. (crypto.randomUUID is there only over TLS and on this machine.) */
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
