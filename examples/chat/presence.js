// Who is here: each window says so from time to time, and who says nothing any more has left.
//
//   every 10 s   {window, name, room}                  here
//   hidden       {window, name, room, away: true}      the browser slows its timers down
//   closed       {window, gone: true}                  if it still gets the chance to say so
//
// These are messages like all others, of a topic that keeps two minutes of them. So whoever comes
// learns from its history who is here. How old that is, is a difference of the broker's own times;
// from then on the time is that of this window's monotonic clock. No clock that is wrong, or set,
// makes anybody come or go.

import { cleanName } from "./entries.js";

export const PRESENCE = "chat-presence"; // not a room: those are chat.<name>
export const PRESENCE_RETENTION = { messages: 1000, seconds: 120 };

const BEAT_MILLISECONDS = 10_000;
const HERE_MILLISECONDS_MAX = 25_000; // two beats and a half
const AWAY_MILLISECONDS_MAX = 110_000; // a hidden page's timers run once a minute
const LOOK_MILLISECONDS = 1000;
const PEOPLE_MAX = 500;

export class Presence {
  #people = new Map(); // by window: {name, room, away, until}
  #me;
  #publish;
  #history;
  #changed;
  #timer = 0;
  #beating = null;
  #hasLeft = false;

  /**
   * `me()` gives {window, name, room}; `publish(data)` gives a receipt; `history()` the messages of
   * the topic; `changed()` is called when somebody has come, gone or moved.
   */
  constructor({ me, publish, history, changed }) {
    this.#me = me;
    this.#publish = publish;
    this.#history = history;
    this.#changed = changed;
    setInterval(() => this.#forget(), LOOK_MILLISECONDS);
  }

  /** The stream is open, and we have a name: say that we are here, and learn who else is. */
  async start() {
    const receipt = await this.beat();
    if (!receipt) return;
    const now = Date.parse(receipt.time);
    for (const message of await this.#history().catch(() => [])) this.#hear(message, now - Date.parse(message.time));
    this.#changed();
  }

  /** Say it now, and again in a while. The receipt, or null. */
  async beat() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.beat(), BEAT_MILLISECONDS);
    await this.#beating; // while the broker is away they would only pile up
    this.#beating ??= this.#say().finally(() => (this.#beating = null));
    return this.#beating;
  }

  /** The window closes: nothing that it still does may take the good-bye back. */
  leave() {
    this.#hasLeft = true;
    clearTimeout(this.#timer);
  }

  /** It was kept by the browser, and is shown again. */
  comeBack() {
    this.#hasLeft = false;
    this.beat();
  }

  async #say() {
    const me = this.#me();
    if (!me.name || this.#hasLeft) return null;
    // Who cannot say so is not here, for the others.
    return this.#publish({ ...me, ...(document.hidden && { away: true }) }).catch(() => null);
  }

  /** A message of the topic has come. */
  receive(message) {
    if (this.#hear(message, 0)) this.#changed();
  }

  /** Who is here, each name once: {name, rooms, away, isMe}, those of `room` first. */
  list(room) {
    const mine = this.#me();
    const names = new Map();
    const all = [...this.#people].map(([window, person]) => ({ ...person, isMe: window === mine.window }));
    if (mine.name && !all.some(({ isMe }) => isMe)) all.push({ ...mine, isMe: true });
    for (const { name, room: at, away, isMe } of all) {
      const found = names.get(name) ?? { name, rooms: new Set(), away: true, isMe: false };
      found.rooms.add(at);
      found.away &&= away === true;
      found.isMe ||= isMe;
      names.set(name, found);
    }
    const rank = (person) => (person.isMe ? 0 : person.rooms.has(room) ? 1 : 2);
    return [...names.values()].sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
  }

  /** Whether it changed anything. Anybody may have published anything. */
  #hear({ data }, age) {
    if (typeof data?.window !== "string" || data.window.length > 64) return false;
    const before = this.#people.get(data.window);
    if (data.gone === true) return this.#people.delete(data.window);
    const name = cleanName(data.name);
    const room = typeof data.room === "string" ? data.room.slice(0, 250) : "";
    const away = data.away === true;
    const until = performance.now() + (away ? AWAY_MILLISECONDS_MAX : HERE_MILLISECONDS_MAX) - Math.max(0, age || 0);
    if (!name || until <= performance.now()) return this.#people.delete(data.window);
    if (!before && this.#people.size >= PEOPLE_MAX) return false;
    this.#people.set(data.window, { name, room, away, until });
    return before?.name !== name || before.room !== room || before.away !== away;
  }

  #forget() {
    let changed = false;
    for (const [window, { until }] of this.#people) {
      if (until <= performance.now()) changed = this.#people.delete(window);
    }
    if (changed) this.#changed();
  }
}
