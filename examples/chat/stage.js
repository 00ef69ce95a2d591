// The demo of a cluster: its nodes, and the button that kills the leader.
//
// Only `repl-broker demo --nodes 3` has this. Its links carry the port and the token of its
// control behind the #, and the page asks that control; a broker knows nothing of it.

import { element } from "./conversation.js";

const LOOK_MILLISECONDS = 400;
const ANSWER_MILLISECONDS_MAX = 3000;
const KEY = /^#demo=(\d{1,5})\.([\w-]{8,64})$/;
const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const SHOWN_MAX = 12; // happenings

const $ = (id) => document.getElementById(id);

export class Stage {
  #storage;
  #key = null; // of the demo that is asked: where its control is, and the token for it
  #state = null;
  #own = []; // what happened to this window's stream
  #node = () => "";
  #timer = 0;
  #looks = 0; // so many have begun; only the last of them goes on
  #drawn = "";

  /** `node()` is the name of the node that this window's stream comes from. */
  constructor({ storage, node }) {
    this.#storage = storage;
    this.#node = node;
    $("kill").addEventListener("click", () => this.#press("leader/kill"));
    document.addEventListener("visibilitychange", () => this.#look());
  }

  /** Take the key out of the address, or else out of what the browser remembers. */
  start() {
    const found = KEY.exec(location.hash);
    if (found) {
      this.#storage.setItem("demo", location.hash);
      history.replaceState(null, "", location.pathname + location.search); // not to be shown on a wall
    }
    const [text, port, token] = found ?? KEY.exec(this.#storage.getItem("demo") ?? "") ?? [];
    if (!text) return;
    if (text !== this.#key?.text) {
      this.#key = { text, control: `http://127.0.0.1:${port}/`, token };
      this.#state = null; // of another demo
      this.draw();
    }
    this.#look();
  }

  /** Something that only this window knows. */
  tell(kind, text) {
    this.#own.push({ kind, text, time: new Date().toISOString() });
    this.#own.splice(0, this.#own.length - SHOWN_MAX);
    this.draw();
  }

  async #ask(path, method = "GET") {
    const key = this.#key;
    if (!key) return "";
    const response = await fetch(key.control + path, {
      method,
      headers: { Authorization: `Bearer ${key.token}` },
      signal: AbortSignal.timeout(ANSWER_MILLISECONDS_MAX),
    });
    if (key !== this.#key) return ""; // this is not about the demo that is asked now
    if (response.status === 401 || response.status === 403) {
      this.#end();
      return "";
    }
    const answer = await response.json();
    if (key !== this.#key) return "";
    if (response.ok) this.#state = answer;
    return response.ok ? "" : answer.detail;
  }

  async #look() {
    clearTimeout(this.#timer);
    const key = this.#key;
    if (!key || document.hidden) return;
    const look = ++this.#looks;
    try {
      await this.#ask("state");
    } catch {
      if (look !== this.#looks || key !== this.#key) return; // a later one tells
      // It may be a key of long ago that the browser remembers: who comes back asks again.
      if (!this.#state) return;
      this.#state = { ...this.#state, leader: null, cannot_kill: "The demo has ended.", nodes: [] };
    }
    this.draw();
    if (this.#key && look === this.#looks) {
      this.#timer = setTimeout(() => this.#look(), LOOK_MILLISECONDS);
    }
  }

  async #press(path) {
    let trouble = "";
    try {
      trouble = await this.#ask(path, "POST");
    } catch {
      trouble = "The demo does not answer.";
    }
    if (trouble) this.tell("trouble", trouble);
    this.draw();
  }

  /** Forget the key: it opens nothing any more. Another window may have put another one there. */
  #end() {
    if (this.#storage.getItem("demo") === this.#key.text) this.#storage.setItem("demo", "");
    this.#key = this.#state = null;
    this.draw();
  }

  // --- drawing ---

  draw() {
    const state = this.#state;
    $("stage").hidden = $("happened").hidden = !state;
    if (!state) return;
    const now = JSON.stringify([state, this.#own, this.#node()]);
    if (now === this.#drawn) return; // what has the focus keeps it
    this.#drawn = now;
    this.#drawNodes(state);
    $("term").textContent = state.leader ? `Term ${state.term}` : state.nodes.length ? "No leader" : "";
    $("kill").disabled = state.cannot_kill !== null;
    $("kill").title = state.cannot_kill ?? `SIGKILL for the process of ${state.leader}`;
    const dashboard = state.nodes.find(({ state }) => state === "running")?.url;
    $("dashboard").hidden = !dashboard;
    if (dashboard) $("dashboard").href = `${dashboard}/ui/`;
    this.#drawHappenings(state);
  }

  #drawNodes({ nodes, leader }) {
    const focused = document.activeElement?.dataset.starts;
    $("nodes").replaceChildren(...nodes.map((node) => this.#nodeItem(node, leader)));
    if (focused) $("nodes").querySelector(`[data-starts="${CSS.escape(focused)}"]`)?.focus();
  }

  #nodeItem({ id, state, streams, returns_in_seconds: wait }, leader) {
    const words = element("span", "node-words");
    if (state === "down") words.append(wait === null ? "down" : `back in ${wait} s`);
    else if (state === "starting") words.append("catching up");
    else words.append(streams === 1 ? "1 stream" : `${streams} streams`);
    const more = element("span", "node-more");
    const item = element("li", "node", element("span", "node-name", id), more, words);
    item.dataset.state = state;
    item.dataset.node = id;
    if (id === leader) more.append(element("span", "tag leads", "leader"));
    if (id === this.#node() && state === "running") more.append(element("span", "tag yours", "yours"));
    if (state === "down") {
      const start = element("button", "quiet small", "Start");
      start.type = "button";
      start.dataset.starts = id;
      start.setAttribute("aria-label", `Start ${id} now`);
      start.addEventListener("click", () => this.#press(`nodes/${encodeURIComponent(id)}/start`));
      more.append(start);
    }
    return item;
  }

  #drawHappenings({ happenings }) {
    const all = [...happenings, ...this.#own].sort((a, b) => a.time.localeCompare(b.time));
    const last = all.at(-1);
    if (last && $("said").textContent !== last.text) $("said").textContent = last.text;
    const lines = all.slice(-SHOWN_MAX).reverse().map(({ kind, time, text }) => {
      const at = element("time", "", TIME.format(new Date(time)));
      at.dateTime = time;
      const line = element("li", "", at, element("span", "", text));
      line.dataset.kind = kind;
      return line;
    });
    $("happenings").replaceChildren(...lines);
  }
}
