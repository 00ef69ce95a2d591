import type { Block } from "./blocks.js";
import { distance, isId } from "./cursor.js";
import type { Emitter } from "./emitter.js";
import { errorOf, ReplBrokerError } from "./errors.js";
import { matcher } from "./filters.js";
import { randomKey } from "./http.js";
import type { Post, Streams, Wish } from "./posts.js";
import type { Message, State, SubscribeOptions, Subscription } from "./types.js";

type OnMessage = (message: Message<never>) => unknown;

/**
 * A subscription with its handlers. `after` is its cursor: what is not behind it came before, by
 * another lane or from another tab, and is dropped.
 */
interface Entry {
  wish: Wish;
  matches: (topic: string) => boolean;
  handle: OnMessage;
  given: SubscribeOptions;
  settle(): void;
}

/** The subscriptions of this tab: who they are, and where each of them is. */
export interface Subscriptions {
  add(filters: string | readonly string[], onMessage: OnMessage, options?: SubscribeOptions): Subscription;
  /** All of them, from where they are. */
  wishes(): Wish[];
  /** What the streams say. */
  receive(post: Post): void;
  state(): State;
  close(): void;
}

export function makeSubscriptions(tab: string, events: Emitter, streams: () => Streams | undefined): Subscriptions {
  const entries = new Map<string, Entry>();
  const deletions = new Set<string>(); // who comes back to the same place is told again
  let state: State = "idle";

  function add(given: string | readonly string[], onMessage: OnMessage, options: SubscribeOptions = {}): Subscription {
    const filters = [given].flat();
    const { after = "latest", signal } = options;
    signal?.throwIfAborted();
    const wish: Wish = { key: tab + randomKey(), filters, after };
    const ready = new Promise<void>((settle) => {
      entries.set(wish.key, { wish, matches: matcher(filters), handle: onMessage, given: options, settle });
    });
    const close = (): void => {
      end(wish.key);
      streams()?.drop(wish.key);
    };
    signal?.addEventListener("abort", close);
    streams()?.want([wish]);
    return {
      filters,
      ready,
      close,
      get cursor() {
        return isId(wish.after) ? wish.after : undefined;
      },
    };
  }

  const wishes = (): Wish[] => [...entries.values()].map(({ wish }) => wish);

  function end(key: string): void {
    entries.get(key)?.settle();
    entries.delete(key);
  }

  function receive({ to, block, state: next, error: text }: Post): void {
    const error = text && errorOf(text);
    const found = (to ?? []).flatMap((key) => entries.get(key) ?? []);
    if (to && !found.length) return; // it is for other tabs
    if (block) {
      onBlock(found, block);
    } else if (!next) {
      for (const { wish } of found) end(wish.key);
      events.emit("error", error as ReplBrokerError, found.map(({ given }) => given.onError));
    } else if (error || next !== state) {
      state = next;
      events.emit("state", { state, error });
    }
  }

  function onBlock(found: Entry[], { id, event, data }: Block): void {
    const isMessage = event === "message";
    let content: any;
    try {
      content = JSON.parse(data || "{}");
    } catch {}
    if (!content || (isMessage && !(isId(id) && content.topic))) {
      const text = `No broker sends this: ${data.slice(0, 99)}`;
      events.emit("error", new ReplBrokerError("malformed_event", text));
      content = {};
    }
    const concerned: Entry[] = [];
    for (const entry of found) {
      const { wish } = entry;
      const { after } = wish;
      const isNew = isId(id) && !(distance(id, after) <= 0);
      if (event === "subscribed") {
        if (!isId(after)) wish.after = id;
        entry.settle();
      } else if (event === "gap") {
        // It tells what a lane lost. One that is further than the lane was may have had that.
        if (isNew || !(distance(after, content.after) > 0)) concerned.push(entry);
        if (isNew || content.reason !== "retention") wish.after = id;
      } else if (isNew) {
        wish.after = id;
        if (isMessage && entry.matches(content.topic)) events.guard(() => entries.has(wish.key) && entry.handle(content as never));
      }
    }
    if (event === "topic-deleted" && !deletions.has(id + data)) {
      deletions.add(id + data);
      if (found.some(({ matches }) => matches(content.topic))) events.emit(event, content);
    }
    if (concerned.length && !events.emit("gap", content, concerned.map(({ given }) => given.onGap))) {
      const text = `Messages after ${content.after} are gone (${content.reason}).`;
      events.emit("error", new ReplBrokerError("gap", text));
    }
  }

  return {
    add,
    wishes,
    receive,
    state: () => state,
    close() {
      for (const key of entries.keys()) end(key);
      receive({ state: "closed" });
    },
  };
}
