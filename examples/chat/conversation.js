// Drawing: the conversation of one room, and what waits to be sent.
//
// All text gets into the page as text nodes. The log keeps to its end while the
// reader is there, and stays put while the reader is elsewhere.

import { hue, initials } from "./entries.js";

const GROUP_MILLISECONDS_MAX = 5 * 60_000; // between messages under one name
const AT_END_PIXELS_MAX = 60;

const HOUR = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("en", { weekday: "long", day: "numeric", month: "long" });
const DAY_AND_YEAR = new Intl.DateTimeFormat("en", { day: "numeric", month: "long", year: "numeric" });

/** An element; `children` are nodes or texts. */
export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Put a name's initials and colour on an avatar. */
export function paintAvatar(avatar, name) {
  avatar.textContent = initials(name);
  avatar.style.setProperty("--hue", hue(name));
}

export class Conversation {
  #log = document.getElementById("log");
  #messages = document.getElementById("messages");
  #pending = document.getElementById("pending");
  #jump = document.getElementById("jump");
  #last = null; // the entry at the end, which the next one is grouped with
  #atEnd = true;
  #scrolling = false;
  #ownWindow;
  #entriesMax;

  constructor({ ownWindow, entriesMax }) {
    this.#ownWindow = ownWindow;
    this.#entriesMax = entriesMax;
    this.#log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#jump.addEventListener("click", () => {
      this.toEnd();
      this.#log.focus();
    });
    // A keyboard that opens on a phone, a box that grows: the end stays in view.
    new ResizeObserver(() => this.#keepAtEnd()).observe(this.#log);
  }

  /** Draw a room afresh. A screen reader is not read all of it. */
  show(entries) {
    this.#log.setAttribute("aria-live", "off");
    this.#last = null;
    const drawn = document.createDocumentFragment();
    for (const entry of entries) this.#draw(entry, drawn);
    this.#messages.replaceChildren(drawn);
    this.toEnd();
    requestAnimationFrame(() => this.#log.setAttribute("aria-live", "polite"));
  }

  /** Add an entry at the end. */
  append(entry) {
    this.#draw(entry, this.#messages);
    while (this.#messages.children.length > this.#entriesMax * 1.2) this.#messages.firstChild.remove();
    if (this.#atEnd) this.#keepAtEnd();
    else this.#jump.hidden = false;
  }

  /** Draw what waits to be sent; `actions` are for messages that were refused. */
  showPending(items, actions) {
    this.#pending.replaceChildren(...items.map((item) => pendingMessage(item, actions)));
    this.#keepAtEnd();
  }

  toEnd() {
    this.#atEnd = true;
    this.#jump.hidden = true;
    this.#keepAtEnd();
  }

  #draw(entry, parent) {
    const day = entry.time?.toDateString();
    if (day && day !== this.#last?.day) parent.append(line("day", dayName(entry.time)));
    if (entry.kind === "message") {
      const own = entry.window !== "" && entry.window === this.#ownWindow;
      parent.append(messageItem(entry, { own, first: !sameGroup(this.#last?.entry, entry) }));
    } else {
      parent.append(line(entry.kind, entry.text));
    }
    this.#last = { entry, day: day ?? this.#last?.day };
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    this.#atEnd = scrollHeight - scrollTop - clientHeight <= AT_END_PIXELS_MAX;
    if (this.#atEnd) this.#jump.hidden = true;
  }

  /** Scroll once a frame at most: measuring after each of many messages would take its time. */
  #keepAtEnd() {
    if (!this.#atEnd || this.#scrolling) return;
    this.#scrolling = true;
    requestAnimationFrame(() => {
      this.#scrolling = false;
      this.#log.scrollTop = this.#log.scrollHeight;
    });
  }
}

function messageItem(entry, { own, first }) {
  const item = element("li", `message${own ? " own" : ""}${first ? " first" : ""}`);
  item.dataset.id = entry.id;
  item.dataset.uuid = entry.uuid;
  if (first && !own) {
    const avatar = element("span", "avatar");
    avatar.setAttribute("aria-hidden", "true");
    paintAvatar(avatar, entry.name);
    item.append(avatar);
  }
  const body = element("div", "body", author(entry, own), bubble(entry.text));
  body.style.setProperty("--hue", hue(entry.name));
  if (entry.cut > 0) {
    const count = entry.cut.toLocaleString("en");
    body.append(element("p", "hint", `${count} more characters are not shown.`));
  }
  item.append(body);
  return item;
}

/** Who and when: seen above a group's first message, and heard with every one. */
function author(entry, own) {
  const name = element("bdi", "author", own ? "You" : entry.name);
  const meta = element("p", "meta", name);
  if (entry.time) {
    const time = element("time", "", HOUR.format(entry.time));
    time.dateTime = entry.time.toISOString();
    time.title = FULL.format(entry.time);
    meta.append(" ", time);
  }
  return meta;
}

function bubble(text) {
  const paragraph = element("p", "bubble", text);
  paragraph.dir = "auto"; // and with it a bidirectional block of its own
  return paragraph;
}

function pendingMessage(item, { again, discard }) {
  const refused = item.state === "refused";
  const words = { waiting: "Sending…", kept: "Sent", refused: `Not sent. ${item.detail}` };
  const state = element("p", refused ? "state error" : "state", words[item.state]);
  const body = element("div", "body", bubble(item.data.text), state);
  if (refused) {
    body.append(
      element("p", "actions", button("Try again", () => again(item)), button("Discard", () => discard(item))),
    );
  }
  const made = element("li", "message own pending first", body);
  made.dataset.state = item.state;
  return made;
}

function button(text, pressed) {
  const made = element("button", "quiet", text);
  made.type = "button";
  made.addEventListener("click", pressed);
  return made;
}

function line(kind, text) {
  return element("li", `line ${kind}`, element("span", "", text));
}

function sameGroup(before, entry) {
  return (
    before?.kind === "message" &&
    before.name === entry.name &&
    before.window === entry.window &&
    before.time?.toDateString() === entry.time?.toDateString() &&
    Math.abs(entry.time - before.time) <= GROUP_MILLISECONDS_MAX
  );
}

function dayName(time) {
  const today = new Date();
  const yesterday = new Date(today.getFullYear(), today.getMonth(), today.getDate() - 1);
  if (time.toDateString() === today.toDateString()) return "Today";
  if (time.toDateString() === yesterday.toDateString()) return "Yesterday";
  return (time.getFullYear() === today.getFullYear() ? DAY : DAY_AND_YEAR).format(time);
}
