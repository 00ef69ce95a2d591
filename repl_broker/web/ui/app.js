// The page: one feed, two views, and who is told of what.

import { follow, parse, Problem } from "./stream.js";
import { $, bytes, count, latency, plural, rate, say } from "./format.js";
import { between, Series } from "./figures.js";
import { Charts } from "./charts.js";
import { Activity, changes, Cluster } from "./cluster.js";
import { Topics } from "./topics.js";
import { isName, TopicPanel } from "./topic.js";

const SILENCE_MILLISECONDS = 8000; // a sample comes every second
const SLEEP_MILLISECONDS = 30_000; // after which a page that nobody sees lets go of its streams
const THEMES = ["auto", "light", "dark"];

const series = new Series();
const activity = new Activity();
const cluster = new Cluster();
const panel = new TopicPanel();
const topics = new Topics(() => listen());
let charts = null;
let feed = new AbortController();
let hello = null;
let last = null; // the last sample
let wasLost = false;
let isAsleep = false;
let knowsPast = false; // whether the minutes before were asked for

// --- the feed ---

/** Open the feed for what is to be seen now; the one before ends. */
function listen() {
  if (isAsleep) return;
  feed.abort();
  feed = new AbortController();
  const { signal } = feed;
  const query = new URLSearchParams({ ...topics.query, topic: panel.name, past: knowsPast ? 0 : 1 });
  knowsPast = true;
  follow(`ui/feed?${query}`, {
    signal,
    silence: SILENCE_MILLISECONDS,
    on: {
      blocks: (blocks) => !signal.aborted && take(blocks.map(parse)),
      state: (state, problem) => !signal.aborted && showConnection(state, problem),
    },
  }).catch((problem) => refused(signal, problem));
}

function refused(signal, problem) {
  if (signal.aborted) return;
  if (problem instanceof Problem && problem.status === 400 && topics.match) {
    topics.refused(problem);
    listen();
  } else {
    showConnection("refused", problem);
  }
}

function take(blocks) {
  for (const { event, data } of blocks) {
    if (event === "hello") greet(JSON.parse(data));
    else if (event === "past") recall(JSON.parse(data));
  }
  // If the page was asleep, many may have come; the last one says it all, but for the charts.
  const samples = blocks.filter(({ event }) => event === "sample").map(({ data }) => JSON.parse(data));
  for (const sample of samples) learn(sample);
  if (samples.length) show(samples.at(-1));
}

function greet(said) {
  if (hello && said.run !== hello.run) {
    activity.note(`${said.node} was restarted`, "news");
    last = null;
  }
  hello = said;
  panel.defaults = said.default_retention;
  say($("version"), said.version);
  document.title = `${said.node} · repl-broker`;
}

function recall(past) {
  let before = null;
  for (const [clock, node] of past) {
    series.add(node.time_ms / 1000, between(before, { clock, node }, hello.commit_buckets_seconds));
    before = { clock, node };
  }
  if (before && !(last?.clock >= before.clock)) last = { ...before, cluster: last?.cluster ?? null };
}

function learn(sample) {
  sample.figures = between(last, sample, hello.commit_buckets_seconds);
  if (last?.clock === sample.clock) sample.figures = last.figures; // another window, the same second
  else series.add(sample.node.time_ms / 1000, sample.figures);
  for (const [text, kind] of changes(last?.cluster, sample.cluster)) activity.note(text, kind);
  last = sample;
}

function show(sample) {
  const { node, figures } = sample;
  say($("tile-published"), rate(figures?.published));
  say($("tile-published-more"), `${count(node.messages)} through this node`);
  say($("tile-delivered"), rate(figures?.delivered));
  say($("tile-delivered-more"), `${count(node.deliveries)} by this node`);
  say($("tile-latency"), latency(figures?.most));
  say($("tile-latency-more"), figures?.half ? `half within ${latency(figures.half)}` : "no writes this second");
  say($("tile-streams"), count(node.subscribers));
  say($("tile-streams-more"), plural(node.channels, "set") + " of filters");
  say($("tile-topics"), count(node.topics));
  say($("tile-topics-more"), plural(node.history_messages, "message") + " kept");
  say($("tile-store"), bytes(node.store_bytes));
  say($("tile-store-more"), node.disk_free_bytes === null ? "on disk" : `${bytes(node.disk_free_bytes)} free`);

  say($("streams-open"), count(node.subscribers));
  say($("streams-filters"), count(node.channels));
  say($("streams-rate"), `${rate(figures?.delivered)}/s`);
  say($("streams-tail"), bytes(node.tail_bytes));
  say($("streams-connections"), count(node.connections));
  say($("streams-accepted"), count(node.connections_accepted));
  say($("streams-refused"), count(node.connections_refused));
  say($("streams-failed"), count(node.connections_failed));

  say($("storage-store"), bytes(node.store_bytes));
  say($("storage-free"), bytes(node.disk_free_bytes));
  say($("storage-history"), `${bytes(node.history_bytes)} in ${plural(node.history_messages, "message")}`);
  say($("storage-writes"), `${rate(figures?.writes)}/s`);
  say($("storage-shared"), figures?.writes ? `${(figures.commands / figures.writes).toFixed(1)} writes` : "–");
  say($("storage-pending"), count(node.pending));
  say($("storage-log"), `${count(node.snapshot_index)} to ${count(node.last_index)}`);
  say($("storage-seq"), count(node.seq));

  cluster.show(sample.cluster, node);
  topics.show(sample.topics);
  panel.show(sample.topic);
  charts ??= new Charts(series);
  charts.draw();
  document.body.dataset.ready = "true";
}

// --- what the page says of itself ---

function showConnection(state, problem) {
  const pill = $("connection");
  const texts = { live: "Live", waiting: "Reconnecting…", refused: "Stopped" };
  const isLocked = state === "waiting" && (problem?.status === 401 || problem?.status === 403);
  pill.dataset.state = state;
  say($("connection-text"), isLocked ? "Needs a token" : texts[state]);
  pill.title = problem ? `${problem.title}: ${problem.message}` : "";
  document.body.classList.toggle("stale", state !== "live");
  const note = problem && state === "refused" ? `${problem.title}. ${problem.message}` : "";
  say($("banner"), note);
  $("banner").hidden = !note;
  if (state !== "live" && !wasLost && !isLocked) activity.note("The feed of this node broke", "bad");
  if (state === "live" && wasLost) activity.note("The feed is back", "good");
  wasLost = state !== "live" && (wasLost || !isLocked);
}

function route() {
  const [view, name = ""] = location.hash.slice(1).split("/");
  const isTopics = view === "topics";
  $("overview-page").hidden = isTopics;
  $("topics-page").hidden = !isTopics;
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if ((link.dataset.view === "topics") === isTopics) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const before = panel.name;
  panel.open(isTopics && isName(name) ? name : "");
  topics.select(panel.name);
  if (panel.name !== before || !hello) listen();
}

function setUpTheme() {
  const button = $("theme");
  const show = (theme) => say($("theme-text"), { auto: "System", light: "Light", dark: "Dark" }[theme]);
  let theme = document.documentElement.dataset.theme ?? "auto";
  show(theme);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    show(theme);
    try {
      localStorage.setItem("repl-broker-theme", theme);
    } catch {
      // it holds until the page is left
    }
  });
}

/** A browser has six connections to a node for all tabs: a tab that nobody sees takes none. */
function setUpSleep() {
  let timer = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(sleep, SLEEP_MILLISECONDS);
    else if (isAsleep) wake();
  });
}

function sleep() {
  isAsleep = true;
  feed.abort();
  panel.sleep();
}

function wake() {
  isAsleep = false;
  knowsPast = false;
  listen();
  panel.wake();
}

setUpTheme();
setUpSleep();
addEventListener("hashchange", route);
route();
