// The list of topics: a window of rows that moves along a list of any length.
//
// The node sorts and searches; the page knows only the rows around what is seen, and
// keeps as many elements as fit on the screen and a few more.

import { $, bytes, count, make, rate, say } from "./format.js";

const EXTRA = 8; // rows drawn above and below what is seen
const AHEAD = 60; // rows known above and below what is seen
const HEIGHT_MAX = 8_000_000; // pixels; browsers draw nothing beyond about 16 million
const SETTLE_MILLISECONDS = 60;

export class Topics {
  match = "";
  sort = "-rate";
  #known = { count: 0, offset: 0, rows: [] };
  #asked = { offset: 0, limit: 2 * AHEAD };
  #pool = [];
  #active = 0; // the row that the keyboard is at
  #activeName = "";
  #timer = 0;
  #changed;
  #selected = "";

  /** `changed()` is called when the feed has to bring something else. */
  constructor(changed) {
    this.#changed = changed;
    const view = $("topics-view-rows");
    view.addEventListener("scroll", () => this.#draw(), { passive: true });
    new ResizeObserver(() => this.#draw()).observe(view);
    $("topic-rows").addEventListener("keydown", (event) => this.#key(event));
    $("topic-rows").addEventListener("focusin", (event) => this.#enter(event.target.closest("tr")));
    $("topic-rows").addEventListener("click", (event) => {
      if (!event.target.closest("a")) event.target.closest("tr")?.querySelector("a[href]")?.click();
    });
    for (const button of document.querySelectorAll("button[data-sort]")) {
      button.addEventListener("click", () => this.#sortBy(button.dataset.sort));
    }
    let typing = 0;
    $("topic-search").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.search($("topic-search").value.trim()), 150);
    });
    this.#showSort();
  }

  /** What the feed is to bring. */
  get query() {
    return { match: this.match, sort: this.sort, ...this.#asked };
  }

  search(text) {
    say($("topic-search-error"), "");
    if (text === this.match) return;
    this.match = text;
    this.#toTop();
  }

  /** The node did not take the search: say so, and show all. */
  refused(problem) {
    say($("topic-search-error"), problem.message);
    this.match = "";
  }

  show(known) {
    this.#known = known;
    const all = this.match ? `${count(known.count)} match` : `${count(known.count)} in all`;
    say($("topics-count"), all);
    $("topics-table").setAttribute("aria-rowcount", known.count + 1);
    $("topics-empty").hidden = known.count > 0;
    say(
      $("topics-empty"),
      this.match ? "No topic matches." : "No topics yet. Publishing to one creates it, or do it here.",
    );
    this.#draw();
  }

  select(name) {
    this.#selected = name;
    this.#draw();
  }

  #toTop() {
    this.#asked = { ...this.#asked, offset: 0 };
    this.#active = 0;
    this.#activeName = "";
    $("topics-view-rows").scrollTop = 0;
    this.#changed();
  }

  #sortBy(column) {
    const descending = this.sort === column || (column !== "name" && this.sort !== `-${column}`);
    this.sort = descending ? `-${column}` : column;
    this.#showSort();
    this.#toTop();
  }

  #showSort() {
    for (const head of document.querySelectorAll("#topics-table th[data-column]")) {
      const by = this.sort.replace("-", "") === head.dataset.column;
      if (by) head.setAttribute("aria-sort", this.sort.startsWith("-") ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  // --- drawing ---

  #geometry() {
    const view = $("topics-view-rows");
    const height = parseFloat(getComputedStyle(view).getPropertyValue("--row")) || 40;
    const head = $("topics-table").tHead.offsetHeight;
    const total = Math.max(1, this.#known.count);
    // Where the list is longer than a browser can scroll, a pixel stands for more.
    const scale = Math.max(1, (total * height) / HEIGHT_MAX);
    const seen = Math.max(1, Math.ceil((view.clientHeight - head) / height) + 1);
    const first = Math.min(Math.max(0, total - 1), Math.floor((view.scrollTop * scale) / height));
    return { view, height, scale, total, seen, first };
  }

  #draw() {
    const { height, scale, total, seen, first } = this.#geometry();
    const from = Math.max(0, Math.min(first - EXTRA, this.#known.count - 1));
    const to = Math.min(this.#known.count, first + seen + EXTRA);
    const above = scale === 1 ? from * height : Math.max(0, (first * height) / scale - (first - from) * height);
    const below = Math.max(0, (total * height) / scale - above - (to - from) * height);
    $("topics-above").style.height = `${above}px`;
    $("topics-below").style.height = `${this.#known.count ? below : 0}px`;
    while (this.#pool.length < to - from) this.#addRow();
    while (this.#pool.length > to - from) this.#pool.pop().row.remove();
    const hadFocus = $("topic-rows").contains(document.activeElement);
    if (hadFocus && this.#activeName) {
      const at = this.#known.rows.findIndex(([name]) => name === this.#activeName);
      if (at >= 0) this.#active = this.#known.offset + at;
    }
    for (let i = 0; i < to - from; i++) this.#fill(this.#pool[i], from + i);
    if (hadFocus) this.#keepFocus(from, to);
    this.#askFor(from, to);
  }

  #addRow() {
    const cells = {
      link: make("a", { tabIndex: -1 }),
      rate: make("td", { className: "number" }),
      messages: make("td", { className: "number" }),
      bytes: make("td", { className: "number" }),
      subscribers: make("td", { className: "number" }),
      index: -1,
      name: "",
    };
    cells.row = make(
      "tr",
      {},
      make("th", { scope: "row" }, cells.link),
      cells.rate,
      cells.messages,
      cells.bytes,
      cells.subscribers,
    );
    this.#pool.push(cells);
    $("topic-rows").append(cells.row);
  }

  #fill(cells, index) {
    const row = this.#known.rows[index - this.#known.offset];
    cells.index = index;
    cells.row.dataset.index = index;
    cells.row.setAttribute("aria-rowindex", index + 2);
    cells.link.tabIndex = index === this.#active ? 0 : -1;
    const [name, published, messages, size, subscribers] = row ?? ["", null, null, null, null];
    cells.name = name;
    say(cells.link, name || "…");
    if (name) cells.link.setAttribute("href", `#topics/${name}`);
    else cells.link.removeAttribute("href");
    cells.row.classList.toggle("quiet", !published);
    if (name && name === this.#selected) cells.row.setAttribute("aria-current", "true");
    else cells.row.removeAttribute("aria-current");
    say(cells.rate, row ? rate(published) : "");
    say(cells.messages, row ? count(messages) : "");
    say(cells.bytes, row ? bytes(size) : "");
    say(cells.subscribers, row ? count(subscribers) : "");
  }

  /** Ask for other rows once the scrolling has settled, if some of these are not known. */
  #askFor(from, to) {
    const { offset, limit } = this.#asked;
    if (from >= offset && to <= offset + limit) return;
    this.#asked = { offset: Math.max(0, from - AHEAD), limit: Math.min(500, to - from + 2 * AHEAD) };
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#changed, SETTLE_MILLISECONDS);
  }

  // --- the keyboard ---

  #enter(row) {
    const cells = this.#pool.find((each) => each.row === row);
    if (!cells) return;
    this.#active = cells.index;
    this.#activeName = cells.name;
    for (const each of this.#pool) each.link.tabIndex = each.index === this.#active ? 0 : -1;
  }

  #key(event) {
    const { seen, total } = this.#geometry();
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: seen - 2, PageUp: 2 - seen, Home: -total, End: total };
    const step = steps[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.#active = Math.min(total - 1, Math.max(0, this.#active + step));
    this.#activeName = "";
    this.#scrollTo(this.#active);
    this.#draw();
    const cells = this.#pool.find((each) => each.index === this.#active);
    this.#activeName = cells?.name ?? "";
    cells?.link.focus({ preventScroll: true });
  }

  #scrollTo(index) {
    const { view, height, scale, seen } = this.#geometry();
    const top = (index * height) / scale;
    const room = (seen - 2) * height;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top > view.scrollTop + room) view.scrollTop = top - room;
  }

  /** Rows have moved under the focus: it stays with its topic, or at least in the list. */
  #keepFocus(from, to) {
    if (this.#active < from || this.#active >= to) {
      $("topics-view-rows").focus({ preventScroll: true });
      return;
    }
    const { link } = this.#pool[this.#active - from];
    if (!link.hasAttribute("href")) link.setAttribute("href", "#topics"); // focusable until it is known
    if (document.activeElement !== link) link.focus({ preventScroll: true });
  }
}
