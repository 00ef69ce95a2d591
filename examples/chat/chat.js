// The page: rooms, names, and how stream, history and outbox come together.
//
// One stream of `chat.*` brings the messages of every room. A room's history is
// fetched when the room is first looked at:
//
//   the stream is open ── history is asked for ── history is there
//                         what comes meanwhile     first the history, then what
//                         waits                    came, less what both have
//
// Whatever the stream brought before the question is in the answer, whatever came
// later waits, so nothing falls between the two.

import { call, Feed, messagesUrl, Outbox, pages, streamUrl } from "./broker.js";
import { Conversation, element, paintAvatar } from "./conversation.js";
import { cleanName, NAME_CHARACTERS_MAX, TEXT_CHARACTERS_MAX, toEntry } from "./entries.js";

const PREFIX = "chat.";
const LOBBY = "lobby";
const RETENTION = { messages: 500, seconds: 30 * 24 * 3600 };
const ROOM_NAME = /^[A-Za-z0-9_-]{1,250}$/; // a topic has at most 255 characters
const ROOM_CHARACTERS_MAX = 40; // of a room made here
const ROOMS_MAX = 500;
const HISTORY_RETRY_MILLISECONDS = 2000;

const $ = (id) => document.getElementById(id);

// --- what the browser remembers -----------------------------------------------

/** Storage that may be denied (private windows, settings), and then forgets. */
function careful(storage) {
  const attempt = (what) => {
    try {
      return what(window[storage]);
    } catch {
      return null;
    }
  };
  return {
    getItem: (key) => attempt((store) => store.getItem(`repl-broker-chat:${key}`)),
    setItem: (key, value) => attempt((store) => store.setItem(`repl-broker-chat:${key}`, value)),
  };
}

const browser = careful("localStorage");
const thisWindow = careful("sessionStorage"); // two windows may have two names

/** Which messages are this window's own. It only says on which side they are drawn. */
function windowId() {
  const id = thisWindow.getItem("window") ?? Math.random().toString(36).slice(2, 14);
  thisWindow.setItem("window", id);
  return id;
}

// --- state -----------------------------------------------------------------------

const me = { name: cleanName(thisWindow.getItem("name") ?? browser.getItem("name")), window: windowId() };
const rooms = new Map(); // by name
let current = null; // the room that is shown
let live = false; // whether the stream has been open; history is not asked for before

const conversation = new Conversation({ ownWindow: me.window, entriesMax: RETENTION.messages });
const outbox = new Outbox({ storage: thisWindow, changed: drawPending, prepare: makeTopic });
const feed = new Feed(`${PREFIX}*`, {
  state: drawState,
  subscribed,
  message: (message) => receive(toEntry(message)),
  gap: (gap) => receiveGap(gap?.reason),
  deleted: (data) => receiveDeleted(data?.topic),
});

/** The room of a name; it is new here if nobody has spoken of it yet. */
function room(name) {
  if (!rooms.has(name)) {
    rooms.set(name, {
      name,
      topic: PREFIX + name,
      exists: false, // as a topic of the broker
      history: "unread", // then "loading", then "read"
      waiting: [], // what the stream brings while the history is loading
      entries: [],
      ids: new Set(), // of the messages among the entries
      unread: 0,
    });
    drawRooms();
  }
  return rooms.get(name);
}

function roomOfTopic(topic) {
  if (typeof topic !== "string" || !topic.startsWith(PREFIX)) return null;
  const name = topic.slice(PREFIX.length);
  if (!ROOM_NAME.test(name) || (rooms.size >= ROOMS_MAX && !rooms.has(name))) return null;
  return room(name);
}

// --- from the stream ----------------------------------------------------------------

function subscribed({ node, position }) {
  live = true;
  $("how-node").textContent = node ?? "–";
  $("how-position").textContent = position ?? "–";
  outbox.run(); // the broker is there: what waits need not wait for its next attempt
  listRooms();
  loadHistory(current);
}

function receive(entry) {
  const at = entry && roomOfTopic(entry.topic);
  if (!at) return;
  at.exists = true;
  $("how-position").textContent = entry.id;
  const isNew = add(at, entry);
  outbox.arrived(entry.uuid);
  if (isNew && (at !== current || document.hidden)) {
    at.unread += 1;
    drawRooms();
  }
}

function receiveGap(reason) {
  const why = {
    retention: "Some messages were sent while this page was away and are no longer kept.",
    unknown_epoch: "The broker has started afresh. Earlier messages are no longer there.",
    ahead: "The broker no longer has the last messages that this page has seen.",
  };
  const text = why[reason] ?? "Some messages are missing here.";
  for (const at of rooms.values()) {
    if (reason === "unknown_epoch") at.exists = false; // until the new broker speaks of it
    add(at, { kind: "gap", text, time: null });
  }
  outbox.forgetKept();
}

function receiveDeleted(topic) {
  const at = roomOfTopic(topic);
  if (!at) return;
  if (at.history === "loading") return void at.waiting.push({ kind: "deleted" });
  forget(at);
  outbox.forgetKept(topic);
  if (at === current) {
    add(at, { kind: "gap", text: "This room was deleted. A new message opens it again.", time: null });
  } else if (at.name !== LOBBY) {
    rooms.delete(at.name);
  }
  drawRooms();
}

function forget(at) {
  Object.assign(at, { exists: false, history: "read", entries: [], ids: new Set(), unread: 0 });
  if (at === current) conversation.show([]);
}

/** Put an entry at the end of its room; false if it is there. */
function add(at, entry) {
  if (at.history === "unread") return true; // it will be in the history
  if (at.history === "loading") return Boolean(at.waiting.push(entry));
  if (at.ids.has(entry.id)) return false;
  if (entry.id) at.ids.add(entry.id);
  at.entries.push(entry);
  if (at.entries.length > RETENTION.messages) at.ids.delete(at.entries.shift().id);
  if (at === current) conversation.append(entry);
  return true;
}

// --- history ----------------------------------------------------------------------------

async function loadHistory(at) {
  if (!live || !at || at.history !== "unread") return;
  at.history = "loading";
  drawNote();
  for (;;) {
    try {
      await makeTopic(at.topic);
      setHistory(at, await readHistory(at.topic));
      return;
    } catch (problem) {
      drawNote(`The history cannot be read. ${problem.message}`);
      if (problem.status === 404) at.exists = false; // deleted meanwhile; make it again
      await new Promise((resolve) => setTimeout(resolve, HISTORY_RETRY_MILLISECONDS));
    }
  }
}

async function readHistory(topic) {
  let entries = [];
  for await (const page of pages(`topics/${topic}/messages`, { after: "earliest", limit: 500 }, "messages")) {
    if (page.gap) entries.push({ kind: "gap", text: "Some messages are no longer kept.", time: null });
    entries.push(...page.items.map(toEntry).filter(Boolean));
    entries = entries.slice(-RETENTION.messages);
  }
  return entries;
}

function setHistory(at, entries) {
  at.history = "read";
  at.entries = entries;
  at.ids = new Set(entries.map(({ id }) => id));
  if (at === current) conversation.show(entries);
  for (const { uuid } of entries) if (uuid) outbox.arrived(uuid);
  for (const entry of at.waiting.splice(0)) {
    if (entry.kind === "deleted") receiveDeleted(at.topic);
    else add(at, entry);
  }
  if (at === current) drawNote();
}

// --- rooms ----------------------------------------------------------------------------

async function listRooms() {
  try {
    for await (const { items } of pages("topics", { match: `${PREFIX}*`, limit: 200 }, "topics")) {
      for (const { name } of items) {
        const at = roomOfTopic(name);
        if (at) at.exists = true;
      }
      if (rooms.size >= ROOMS_MAX) return;
    }
  } catch {
    // The rooms that are known stay; the next connection asks again.
  }
}

/** Make a room's topic, with its retention, if it is not known to be there. */
async function makeTopic(topic) {
  const at = roomOfTopic(topic);
  if (!at || at.exists) return;
  // A topic that exists keeps what it was made with: only one that is missing is made.
  const { items } = (await pages("topics", { match: topic, limit: 1 }, "topics").next()).value;
  if (items.length === 0) await call("PUT", `topics/${topic}`, JSON.stringify({ retention: RETENTION }));
  at.exists = true;
}

/** Show the room that the address names (#lobby), so that links and the back button work. */
function enterRoom() {
  const name = decode(location.hash.slice(1));
  if (!ROOM_NAME.test(name)) return void location.replace(`#${LOBBY}`);
  current = room(name);
  current.unread = 0;
  conversation.show(current.entries);
  drawRoom();
  loadHistory(current);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

/** A topic's token from what somebody typed: "Café talk" becomes "cafe-talk". */
function roomName(text) {
  const plain = text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  return plain.replace(/[^a-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, ROOM_CHARACTERS_MAX);
}

// --- drawing ---------------------------------------------------------------------------

function drawRoom() {
  $("room-title").replaceChildren(element("span", "hash", "#"), current.name);
  $("text-label").textContent = `Message to ${current.name}`;
  $("text").placeholder = `Message to ${current.name}`;
  $("log").setAttribute("aria-label", `Messages in ${current.name}`);
  showCode("how-stream", `GET ${streamUrl(`${PREFIX}*`)}`);
  const data = `{"name":"curl","text":"Hello"}`;
  showCode(
    "how-post",
    `curl -H 'Content-Type: application/json' \\\n  -d '${data}' \\\n  ${messagesUrl(current.topic)}`,
  );
  showCode("how-follow", `curl -N '${streamUrl(current.topic)}'`);
  drawRooms();
  drawNote();
  drawPending();
}

function drawRooms() {
  const sorted = [...rooms.values()].sort(
    (a, b) => (b.name === LOBBY) - (a.name === LOBBY) || a.name.localeCompare(b.name),
  );
  const focused = document.activeElement?.hash; // drawing afresh must not lose the focus
  $("rooms").replaceChildren(...sorted.map(roomItem));
  if (focused) document.querySelector(`#rooms a[href="${CSS.escape(focused)}"]`)?.focus();
  const unread = sorted.reduce((sum, at) => sum + at.unread, 0);
  document.title = `${unread ? `(${unread}) ` : ""}${current?.name ?? "repl-broker"} · chat`;
}

function roomItem(at) {
  const link = element("a", "", element("span", "hash", "#"), element("span", "room-name", at.name));
  link.href = `#${at.name}`;
  link.title = at.name;
  if (at === current) link.setAttribute("aria-current", "page");
  if (at.unread && at !== current) {
    const count = at.unread > 99 ? "99+" : String(at.unread);
    link.classList.add("has-unread");
    link.append(element("span", "badge", count, element("span", "hidden", " unread")));
  }
  return element("li", "", link);
}

/** The line above the messages: that they are on their way, or that there are none. */
function drawNote(trouble = "") {
  const empty = current?.entries.length === 0;
  const loading = current?.history !== "read";
  $("log").setAttribute("aria-busy", String(loading));
  $("note").textContent = trouble || (loading ? "Loading…" : empty ? "Nothing said here yet. Say hello." : "");
}

function drawPending() {
  const items = outbox.items.filter(({ topic }) => topic === current?.topic);
  conversation.showPending(items, {
    again: (item) => outbox.again(item),
    discard: (item) => outbox.discard(item),
  });
  if (items.length) $("note").textContent = "";
  const refused = items.findLast(({ state }) => state === "refused");
  announce(refused ? `Not sent. ${refused.detail}` : "");
  drawBanner();
}

/** Say something to a screen reader that is seen elsewhere on the page. */
function announce(text) {
  if ($("announcer").textContent !== text) $("announcer").textContent = text;
}

const STATES = { connecting: "Connecting…", live: "Live", reconnecting: "Reconnecting…", lost: "Offline" };

function drawState(state) {
  $("status").dataset.state = state;
  $("status-text").textContent = STATES[state];
  drawBanner();
}

function drawBanner() {
  const waiting = outbox.items.filter(({ state }) => state === "waiting").length;
  const away = feed.state === "reconnecting" || feed.state === "lost";
  $("banner").hidden = !away;
  if (!away) return;
  const what = waiting === 1 ? "Your message waits" : `Your ${waiting} messages wait`;
  const then = waiting ? `${what} here and will be sent when it is back.` : "You can go on writing.";
  const text = `The broker does not answer. ${then}`;
  if ($("banner-text").textContent !== text) $("banner-text").textContent = text;
}

function drawMe() {
  $("me-name").textContent = me.name || "You";
  $("me").setAttribute("aria-label", `${me.name || "No name yet"}. Change your name`);
  paintAvatar($("me-avatar"), me.name || "?");
}

// --- writing -------------------------------------------------------------------------

const characters = (text) => [...text].length;

function submitMessage() {
  const text = $("text").value.replace(/\s+$/, "");
  const count = characters(text);
  if (!me.name) return askName();
  if (count > TEXT_CHARACTERS_MAX) {
    const over = (count - TEXT_CHARACTERS_MAX).toLocaleString("en");
    return showError("composer-error", `A message has at most 2,000 characters; this one has ${over} too many.`);
  }
  if (!text.trim()) return;
  $("text").value = "";
  textChanged();
  conversation.toEnd();
  outbox.add(current.topic, { name: me.name, text, window: me.window });
}

function textChanged() {
  const count = characters($("text").value);
  const left = TEXT_CHARACTERS_MAX - count;
  $("counter").textContent = left <= 200 ? left.toLocaleString("en") : "";
  $("counter").classList.toggle("over", left < 0);
  $("text").setAttribute("aria-invalid", String(left < 0));
  if (left >= 0) showError("composer-error", "");
  growText();
}

/** As high as its text; the style sheet has the limit. */
function growText() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

/** Show an error, or with "" none; the element is an alert, so it is heard, once. */
function showError(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function textKey(event) {
  // Enter ends a composition in Chinese or Japanese input; it does not send then.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
}

// --- dialogs ----------------------------------------------------------------------------

function askName() {
  $("name").value = me.name;
  $("name-title").textContent = me.name ? "Change your name" : "What shall we call you?";
  $("name-cancel").hidden = !me.name;
  showError("name-error", "");
  $("name-dialog").showModal();
  $("name").select();
}

function submitName() {
  const typed = $("name").value;
  const name = cleanName(typed);
  if (!name) return showError("name-error", "Please type a name.");
  if (characters(typed.trim()) > NAME_CHARACTERS_MAX) {
    return showError("name-error", `A name has at most ${NAME_CHARACTERS_MAX} characters.`);
  }
  me.name = name;
  browser.setItem("name", name);
  thisWindow.setItem("name", name);
  drawMe();
  $("name-dialog").close();
  $("text").focus();
}

function askRoom() {
  $("room-name").value = "";
  roomTyped();
  $("room-dialog").showModal();
}

function roomTyped() {
  const name = roomName($("room-name").value);
  showError("room-error", "");
  $("room-hint").textContent = name
    ? `Its topic is ${PREFIX}${name}. It keeps its last ${RETENTION.messages} messages.`
    : `A room is a topic, and keeps its last ${RETENTION.messages} messages.`;
}

async function submitRoom() {
  const name = roomName($("room-name").value);
  if (!name) return showError("room-error", "Please use letters a–z, digits, “-” or “_”.");
  try {
    await makeTopic(room(name).topic);
  } catch (problem) {
    if (!rooms.get(name).exists && rooms.get(name) !== current) rooms.delete(name);
    drawRooms();
    return showError("room-error", problem.message);
  }
  $("room-dialog").close();
  location.hash = name;
}

// --- how it works ---------------------------------------------------------------------

function showHow(shown) {
  $("how").hidden = !shown;
  $("how-toggle").setAttribute("aria-expanded", String(shown));
}

/** Code that wraps after a slash or a question mark, and is copied without the breaks. */
function showCode(id, code) {
  const parts = code.split(/(?<=[/?](?![/?]))/);
  $(id).replaceChildren(...parts.flatMap((part) => [part, element("wbr")]));
}

async function copy(button) {
  const source = $(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
    announce("Copied");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  } catch {
    getSelection().selectAllChildren(source); // plain HTTP: the reader presses Ctrl-C
  }
}

// --- start ------------------------------------------------------------------------------

function submits(form, handler) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    handler();
  });
}

function listen() {
  submits("composer", submitMessage);
  submits("name-form", submitName);
  submits("room-form", submitRoom);
  $("text").addEventListener("keydown", textKey);
  $("text").addEventListener("input", textChanged);
  $("room-name").addEventListener("input", roomTyped);
  $("me").addEventListener("click", askName);
  $("name-cancel").addEventListener("click", () => $("name-dialog").close());
  $("new-room").addEventListener("click", askRoom);
  $("room-cancel").addEventListener("click", () => $("room-dialog").close());
  $("how-toggle").addEventListener("click", () => showHow($("how").hidden));
  $("how-close").addEventListener("click", () => {
    showHow(false);
    $("how-toggle").focus();
  });
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", () => copy(button));
  }
  $("try-now").addEventListener("click", () => feed.open());
  addEventListener("online", () => feed.open());
  addEventListener("hashchange", () => {
    enterRoom();
    // On a phone this would open the keyboard over what one came to read.
    if (matchMedia("(hover: hover)").matches) $("text").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !current) return;
    current.unread = 0;
    drawRooms();
  });
}

function start() {
  listen();
  drawMe();
  showHow(matchMedia("(min-width: 1200px)").matches);
  room(LOBBY);
  feed.open();
  enterRoom();
  outbox.run();
  if (me.name) $("text").focus();
  else askName();
}

start();
