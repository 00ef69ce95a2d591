// The page: rooms, names, and how stream, history, presence and outbox come together.
//
// One stream brings the messages of every room, and who is here. The client keeps it open, at
// whichever node answers. A room's history is
// fetched when the room is first looked at:
//
//   the stream is open ── history is asked for ── history is there
//                         what comes meanwhile     first the history, then what
//                         waits                    came, less what both have
//
// Whatever the stream brought before the question is in the answer, whatever came
// later waits, so nothing falls between the two.

import { connect } from "../client.js"; // the daemon serves it
import { Conversation, element, paintAvatar } from "./conversation.js";
import { cleanName, NAME_CHARACTERS_MAX, TEXT_CHARACTERS_MAX, toEntry } from "./entries.js";
import { messagesUrl, Nodes, streamUrl } from "./nodes.js";
import { Outbox } from "./outbox.js";
import { Presence, PRESENCE, PRESENCE_RETENTION } from "./presence.js";
import { Stage } from "./stage.js";

const PREFIX = "chat.";
const LOBBY = "lobby";
const RETENTION = { messages: 500, seconds: 30 * 24 * 3600 };
const ROOM_NAME = /^[A-Za-z0-9_-]{1,250}$/; // a topic has at most 255 characters
const ROOM_CHARACTERS_MAX = 40; // of a room made here
const ROOMS_MAX = 500;
const HISTORY_RETRY_MILLISECONDS = 2000;
const LOST_AFTER_MILLISECONDS = 20_000;
const FACES_MAX = 4; // above the conversation

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
let feed = null; // the subscription of the rooms
let wasLive = 0; // when the stream broke

const conversation = new Conversation({ ownWindow: me.window, entriesMax: RETENTION.messages });
const nodes = new Nodes();
await nodes.find();
const client = connect({ urls: nodes.urls });
const outbox = new Outbox({ storage: thisWindow, changed: drawPending, publish: send });
const stage = new Stage({ storage: browser, node: () => nodes.name() });
const presence = new Presence({
  me: () => ({ ...me, room: current?.name ?? LOBBY }),
  publish: (data) => ensureTopic(PRESENCE, PRESENCE_RETENTION).then(() => client.publish(PRESENCE, data)),
  history: () => readMessages(PRESENCE),
  changed: drawPeople,
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

/** One stream for the rooms and for who is here; the client makes it of both subscriptions. */
function subscribe() {
  client.on("state", ({ state }) => changeState(state));
  client.on("error", (error) => {
    console.error(error);
    drawNote(error.message);
  });
  feed = client.subscribe(`${PREFIX}*`, (message) => receive(toEntry(message)), {
    onGap: (gap) => receiveGap(gap.reason),
    onError: refused,
  });
  client.subscribe(PRESENCE, (message) => presence.receive(message), {
    onGap() {}, // who is here says so again
  });
  client.on("topic-deleted", ({ topic }) => {
    made.delete(topic);
    receiveDeleted(topic);
  });
  feed.ready.then(begun);
}

/** The broker does not let us listen. */
function refused(error) {
  drawNote(`The rooms cannot be followed. ${error.message}`);
}

/** What is published from now on arrives. */
function begun() {
  live = true;
  drawPosition();
  loadHistory(current);
}

function changeState(state) {
  drawState(state);
  if (state !== "live") return;
  made.clear(); // it may be another broker
  outbox.hurry();
  listRooms();
  presence.start();
}

function receive(entry) {
  const at = entry && roomOfTopic(entry.topic);
  if (!at) return;
  at.exists = true;
  drawPosition();
  const isNew = add(at, entry);
  outbox.arrived(entry.uuid);
  const isMine = entry.window === me.window; // said just before another room was entered
  if (isNew && !isMine && (at !== current || document.hidden)) {
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
      if (problem.code === "topic_not_found") at.exists = false; // deleted meanwhile; make it again
      await new Promise((resolve) => setTimeout(resolve, HISTORY_RETRY_MILLISECONDS));
    }
  }
}

async function readHistory(topic) {
  const entries = await readMessages(topic, () => ({ kind: "gap", text: "Some messages are no longer kept.", time: null }));
  return entries.map((entry) => (entry.kind ? entry : toEntry(entry))).filter(Boolean).slice(-RETENTION.messages);
}

/** All that a topic retains, page by page; what `missing` gives stands where messages are gone. */
async function readMessages(topic, missing = () => []) {
  const found = [];
  for (let after = "earliest"; after !== null; ) {
    const page = await client.history(topic, { after, limit: 500 });
    found.push(...(page.gap ? [missing()].flat() : []), ...page.messages);
    after = page.next;
  }
  return found;
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
    for (let after; after !== null && rooms.size < ROOMS_MAX; ) {
      const page = await client.topics.list({ match: `${PREFIX}*`, limit: 200, after });
      for (const { name } of page.topics) {
        const at = roomOfTopic(name);
        if (at) at.exists = true;
      }
      after = page.next;
    }
  } catch {
    // The rooms that are known stay; the next connection asks again.
  }
}

/** Make a room's topic, with its retention, if it is not known to be there. */
async function makeTopic(topic) {
  const at = roomOfTopic(topic);
  if (!at || at.exists) return;
  made.delete(topic); // nobody has spoken of it, or it was deleted
  await ensureTopic(topic, RETENTION);
  at.exists = true;
}

const made = new Set(); // topics that are there

/** A topic that exists keeps what it was made with: only one that is missing is made. */
async function ensureTopic(topic, retention) {
  if (made.has(topic)) return;
  const { topics } = await client.topics.list({ match: topic, limit: 1 });
  if (topics.length === 0) await client.topics.put(topic, { retention });
  made.add(topic);
}

/** Show the room that the address names (#lobby), so that links and the back button work. */
function enterRoom() {
  stage.start(); // the address may hold its key
  const name = decode(location.hash.slice(1));
  if (!ROOM_NAME.test(name)) return void location.replace(`#${LOBBY}`);
  current = room(name);
  current.unread = 0;
  conversation.show(current.entries);
  drawRoom();
  drawPeople();
  loadHistory(current);
  if (live) presence.beat(); // others see where we are
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

const STATES = { idle: "Connecting…", connecting: "Connecting…", live: "Live", reconnecting: "Reconnecting…", lost: "Offline" };
let shownState = "connecting";
let lostTimer = 0;

function drawState(state) {
  if (state === "live") {
    clearTimeout(lostTimer);
    lostTimer = 0;
  } else {
    wasLive ||= shownState === "live" ? performance.now() : 0;
    lostTimer ||= setTimeout(() => showState("lost"), LOST_AFTER_MILLISECONDS);
    if (shownState === "lost") return; // it stays lost until it is live
  }
  showState(state);
}

function showState(state) {
  shownState = state;
  $("status").dataset.state = state;
  $("status-text").textContent = STATES[state] ?? state;
  $("status-node").textContent = state === "live" && nodes.isCluster ? nodes.name() : "";
  drawBanner();
}

/** The stream has begun at a node, for the first time or again. */
function moved() {
  const name = nodes.name();
  const from = $("how-node").textContent;
  const seconds = wasLive && ((performance.now() - wasLive) / 1000).toFixed(1);
  wasLive = 0;
  $("how-node").textContent = name;
  if (shownState === "live") showState("live");
  if (from === name || !seconds) return;
  stage.tell("moved", `Your stream went from ${from} to ${name} in ${seconds} s. It goes on where it was.`);
}

function drawPosition() {
  $("how-position").textContent = feed?.cursor ?? "–";
}

function drawBanner() {
  const waiting = outbox.items.filter(({ state }) => state === "waiting").length;
  const away = shownState === "reconnecting" || shownState === "lost";
  $("banner").hidden = !away;
  if (!away) return;
  const what = waiting === 1 ? "Your message waits" : `Your ${waiting} messages wait`;
  const then = waiting ? `${what} here and will be sent when it is back.` : "You can go on writing.";
  const who = nodes.isCluster ? `${nodes.name()} does not answer; another node is asked.` : "The broker does not answer.";
  const text = `${who} ${then}`;
  if ($("banner-text").textContent !== text) $("banner-text").textContent = text;
}

/** Who is here: those in this room in the list and above the conversation, the others with their room. */
function drawPeople() {
  const room = current?.name ?? LOBBY;
  const people = presence.list(room);
  $("people").replaceChildren(...people.map((person) => personItem(person, room)));
  const inRoom = people.filter(({ rooms }) => rooms.has(room));
  $("faces").replaceChildren(...inRoom.slice(0, FACES_MAX).map(({ name }) => avatar(name)));
  $("here-count").textContent = inRoom.length ? `${inRoom.length} here` : "";
}

function personItem({ name, rooms, away, isMe }, room) {
  const item = element("li", "person", avatar(name), element("bdi", "person-name", name));
  const where = rooms.has(room) ? "" : `#${[...rooms][0]}`;
  const hint = [isMe && "you", away && "away", where].filter(Boolean).join(", ");
  if (hint) item.append(element("span", "hint", hint));
  item.dataset.away = away;
  item.title = name;
  return item;
}

function avatar(name) {
  const made = element("span", "avatar");
  made.setAttribute("aria-hidden", "true");
  paintAvatar(made, name);
  return made;
}

function drawMe() {
  $("me-name").textContent = me.name || "You";
  $("me").setAttribute("aria-label", `${me.name || "No name yet"}. Change your name`);
  paintAvatar($("me-avatar"), me.name || "?");
}

// --- writing -------------------------------------------------------------------------

/** What the outbox does with an item. */
async function send({ topic, data, uuid }, signal) {
  await makeTopic(topic);
  await client.publish(topic, data, { idempotencyKey: uuid, signal });
}

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
  drawPeople();
  if (live) presence.start();
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
  // The client tries at once when the browser is back online; this says that it may be.
  $("try-now").addEventListener("click", () => dispatchEvent(new Event("online")));
  addEventListener("pagehide", leave);
  addEventListener("pageshow", ({ persisted }) => persisted && presence.comeBack());
  addEventListener("hashchange", () => {
    enterRoom();
    // On a phone this would open the keyboard over what one came to read.
    if (matchMedia("(hover: hover)").matches) $("text").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (live) presence.beat();
    if (document.hidden || !current) return;
    current.unread = 0;
    drawRooms();
  });
}

/** The window closes: the others need not wait until it is missed. */
function leave() {
  if (!live || !me.name) return;
  presence.leave();
  const body = JSON.stringify({ window: me.window, gone: true });
  const headers = { "Content-Type": "application/json" };
  const url = `${nodes.current || nodes.urls[0]}/v1/topics/${PRESENCE}/messages`;
  fetch(url, { method: "POST", headers, body, keepalive: true }).catch(() => {});
}

function start() {
  listen();
  drawMe();
  const beside = matchMedia("(min-width: 1200px)"); // it is over the conversation otherwise
  showHow(beside.matches);
  beside.addEventListener("change", () => beside.matches || showHow(false));
  room(LOBBY);
  nodes.listen(moved);
  subscribe();
  enterRoom();
  outbox.run();
  if (me.name) $("text").focus();
  else askName();
}

start();
