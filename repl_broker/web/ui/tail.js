// A live look at a topic: bounded, drawn once a frame, and honest about what it leaves out.
//
// Every message is counted, few become elements. Where more come than can be read, one
// of n is shown and n is said. The newest are kept as text, so that a pause, a search or a
// quiet moment shows all of them.

import { follow, parse } from "./stream.js";
import { $, bytes, count, make, plural, rate, say } from "./format.js";

const ROWS_MAX = 200;
const KEPT_MAX = 1000;
const KEPT_CHARACTERS_MAX = 8_000_000;
const SHOWN_PER_SECOND = 20; // more cannot be read
const BURST = 60;
const CUT_CHARACTERS = 600;
const WHOLE_CHARACTERS_MAX = 200_000;
const MARKS_MAX = 20;
const SILENCE_MILLISECONDS = 40_000; // heartbeats come every 15 s
const STATUS_MILLISECONDS = 500;

const MESSAGE = /^id: (\S+)\ndata: \{"id":"[^"]*","topic":"[^"]*","time":"([^"]*)","data":/;

export class Tail {
  #stopping = new AbortController();
  #kept = []; // blocks of messages, oldest first
  #keptSize = 0;
  #due = []; // elements' worth of blocks for the next frame
  #frame = 0;
  #tokens = BURST;
  #refilled = 0;
  #arrived = 0;
  #window = { arrived: 0, matched: 0, shown: 0, since: 0 };
  #isPartial = false; // something that matches is not on the screen though it would fit
  #search = "";
  #paused = false;
  #held = false;
  #since = 0; // messages that came during the pause
  #state = "Connecting…";
  #timer = 0;

  constructor() {
    const list = $("tail");
    const hold = (on) => () => {
      this.#held = on;
      if (!on && !this.#paused) this.#resume();
      this.#showStatus();
    };
    list.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hold(true)());
    list.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hold(false)());
    list.addEventListener("focusin", hold(true));
    list.addEventListener("focusout", hold(false));
    $("tail-pause").addEventListener("click", () => this.pause(!this.#paused));
    $("tail-clear").addEventListener("click", () => this.#clear());
    let typing = 0;
    $("tail-search").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.#find($("tail-search").value), 150);
    });
  }

  /** Follow `topic` from `after` on: an event id, "earliest" or "latest". */
  start(topic, after) {
    this.stop();
    this.#clear();
    this.pause(false);
    this.#state = "Connecting…";
    this.#timer = setInterval(() => this.#tick(), STATUS_MILLISECONDS);
    this.#stopping = new AbortController();
    const { signal } = this.#stopping;
    const query = new URLSearchParams({ topic, after });
    follow(`v1/events?${query}`, {
      signal,
      silence: SILENCE_MILLISECONDS,
      resume: true,
      on: {
        blocks: (blocks) => this.#take(blocks),
        state: (state) => {
          this.#state = state === "live" ? "Live" : "Reconnecting…";
        },
      },
    }).catch((problem) => {
      if (signal.aborted) return;
      this.#state = `${problem.title}. ${problem.message}`;
      this.#showStatus();
    });
  }

  stop() {
    this.#stopping.abort();
    clearInterval(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
  }

  get isPaused() {
    return this.#paused;
  }

  pause(on) {
    const before = this.#paused;
    this.#paused = on;
    $("tail-pause").setAttribute("aria-pressed", String(on));
    say($("tail-pause"), on ? "Resume" : "Pause");
    if (on && !before) this.#drawKept(); // all of the newest, to be read at leisure
    else if (before) this.#resume();
    this.#showStatus();
  }

  // --- what comes ---

  #take(blocks) {
    for (const block of blocks) {
      if (MESSAGE.test(block)) this.#keep(block);
      else if (block.includes("\nevent: ")) this.#takeEvent(parse(block));
    }
    if (this.#due.length) this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #keep(block) {
    this.#arrived++;
    this.#window.arrived++;
    this.#kept.push(block);
    this.#keptSize += block.length;
    if (this.#kept.length > 2 * KEPT_MAX || this.#keptSize > KEPT_CHARACTERS_MAX) this.#forget();
    if (!this.#matches(block)) return;
    this.#window.matched++;
    if (this.#paused || this.#held) {
      this.#since++;
      return;
    }
    if (!this.#takeToken()) {
      this.#isPartial = true;
      return;
    }
    this.#due.push(block);
    if (this.#due.length > 2 * ROWS_MAX) this.#due.splice(0, ROWS_MAX); // a hidden page draws nothing
  }

  #forget() {
    let from = Math.max(0, this.#kept.length - KEPT_MAX);
    this.#keptSize = this.#kept.slice(from).reduce((sum, block) => sum + block.length, 0);
    while (this.#keptSize > KEPT_CHARACTERS_MAX / 2 && from < this.#kept.length - 1) {
      this.#keptSize -= this.#kept[from++].length;
    }
    this.#kept = this.#kept.slice(from);
  }

  #takeToken() {
    if (this.#tokens < 1) {
      const now = performance.now();
      this.#tokens = Math.min(BURST, ((now - this.#refilled) / 1000) * SHOWN_PER_SECOND);
      if (this.#tokens < 1) return false;
      this.#refilled = now;
    }
    this.#tokens--;
    return true;
  }

  #takeEvent({ event, data }) {
    const said = JSON.parse(data ?? "null") ?? {};
    if (event === "gap") {
      const why = { retention: "trimmed by retention", unknown_epoch: "of another cluster", ahead: "ahead of the log" };
      this.#remark(`Gap: messages after ${said.after} are not to be had (${why[said.reason] ?? said.reason}).`);
    } else if (event === "topic-deleted") {
      this.#remark("The topic was deleted, with its history.");
    }
  }

  #remark(text) {
    $("tail").prepend(make("li", { className: "remark" }, text));
  }

  #matches(block) {
    return !this.#search || dataOf(block).toLowerCase().includes(this.#search);
  }

  // --- what is shown ---

  #draw() {
    this.#frame = 0;
    const due = this.#due.splice(0).slice(-ROWS_MAX);
    this.#window.shown += due.length;
    const rows = document.createDocumentFragment();
    for (const block of due.reverse()) rows.append(this.#row(block));
    const list = $("tail");
    list.prepend(rows);
    while (list.children.length > ROWS_MAX) list.lastChild.remove();
    $("tail-empty").hidden = list.children.length > 0;
  }

  /** All that is kept and matches, newest first. */
  #drawKept() {
    this.#due = [];
    this.#isPartial = false;
    const blocks = [];
    for (let i = this.#kept.length - 1; i >= 0 && blocks.length < ROWS_MAX; i--) {
      if (this.#matches(this.#kept[i])) blocks.push(this.#kept[i]);
    }
    $("tail").replaceChildren(...blocks.map((block) => this.#row(block)));
    $("tail-empty").hidden = blocks.length > 0;
  }

  #resume() {
    if (this.#since) this.#drawKept();
    this.#since = 0;
  }

  #find(text) {
    this.#search = text.toLowerCase();
    this.#drawKept();
    this.#showStatus();
  }

  #clear() {
    this.#kept = [];
    this.#keptSize = 0;
    this.#arrived = 0;
    this.#since = 0;
    this.#tokens = BURST;
    this.#window = { arrived: 0, matched: 0, shown: 0, since: performance.now() };
    this.#drawKept();
    this.#showStatus();
  }

  #row(block) {
    const [, id, time] = MESSAGE.exec(block);
    const data = dataOf(block);
    const body = make("code", { className: "data" });
    this.#write(body, data.slice(0, CUT_CHARACTERS));
    const row = make(
      "li",
      {},
      make("time", { dateTime: time, title: time }, localTime(time)),
      make("span", { className: "seq", title: id }, `#${id.split("-").at(-1)}`),
      body,
    );
    if (data.length > CUT_CHARACTERS) {
      const more = make("button", { type: "button", className: "more" }, `… all ${bytes(data.length)}`);
      more.addEventListener("click", () => {
        this.#write(body, data.slice(0, WHOLE_CHARACTERS_MAX));
        more.remove();
      });
      row.append(more);
    }
    return row;
  }

  /** Text, with what is searched for marked. */
  #write(element, text) {
    element.textContent = "";
    let at = 0;
    for (let marks = 0; this.#search && marks < MARKS_MAX; marks++) {
      const found = text.toLowerCase().indexOf(this.#search, at);
      if (found < 0) break;
      const end = found + this.#search.length;
      element.append(text.slice(at, found), make("mark", {}, text.slice(found, end)));
      at = end;
    }
    element.append(text.slice(at));
  }

  #tick() {
    const now = performance.now();
    const list = $("tail");
    if (this.#held && !list.matches(":hover") && !list.contains(document.activeElement)) {
      this.#held = false; // what had the focus is gone, without a word
      if (!this.#paused) this.#resume();
    }
    const { arrived, since } = this.#window;
    if (!arrived && this.#isPartial && !this.#paused && !this.#held) this.#drawKept(); // it is quiet now
    const seconds = (now - since) / 1000;
    if (seconds >= 1 || !arrived) {
      this.#showStatus(seconds);
      this.#window = { arrived: 0, matched: 0, shown: 0, since: now };
    }
  }

  #showStatus(seconds = 0) {
    const { arrived, matched, shown } = this.#window;
    const parts = [this.#state];
    if (this.#paused || this.#held) {
      parts[0] = this.#paused ? "Paused" : "Held while you read";
      if (this.#since) parts.push(`${count(this.#since)} new`);
    } else if (seconds && arrived) {
      parts.push(`${rate(arrived / seconds)} a second`);
      if (matched > shown + 1) parts.push(`showing 1 of ${count(Math.round(matched / Math.max(1, shown)))}`);
    }
    parts.push(`${plural(this.#arrived, "message")} seen`);
    say($("tail-status"), parts.join(" · "));
    $("tail-status").dataset.state = this.#paused || this.#held ? "paused" : this.#state === "Live" ? "live" : "";
  }
}

/** The message's data as it was published; without parsing it. */
function dataOf(block) {
  return block.slice(MESSAGE.exec(block)[0].length, -1);
}

function localTime(text) {
  const date = new Date(text);
  return Number.isNaN(date.valueOf())
    ? text
    : `${date.toLocaleTimeString("en-GB")}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}
