import type { Block } from "./blocks.js";
import { distance, isId } from "./cursor.js";
import { type Emitter, guard } from "./emitter.js";
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
  /** All of them, from where they are. What is still on its way is not heeded any more. */
  wishes(): Wish[];
  /** What the streams say. */
  receive(post: Post): void;
  state(): State;
  /** There are no streams for now: nothing arrives. */
  pause(): void;
  close(): void;
}

export function makeSubscriptions(tab: string, events: Emitter, streams: () => Streams | undefined): Subscriptions {
  const entries = new Map<string, Entry>();
  const deletions = new Set<string>(); // who comes back to the same place is told again
  let state: State = "idle";
  let hasLived = false;

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

  const tell = (error: ReplBrokerError): unknown => events.emit("error", error);

  function wishes(): Wish[] {
    const found = [...entries.values()];
    entries.clear();
    return found.map((entry) => {
      entry.wish.key = tab + randomKey(); // what comes under the old one is too late
      entries.set(entry.wish.key, entry);
      return entry.wish;
    });
  }

  function end(key: string): void {
    entries.get(key)?.settle();
    entries.delete(key);
  }

  function receive({ to, block, state: next, error: text }: Post): void {
    const error = text && errorOf(text);
    const found = to?.flatMap((key) => entries.get(key) ?? []);
    if (next) {
      hasLived ||= next === "live";
      if (next === "connecting" && hasLived) next = "reconnecting";
      if (!error && next === state) return;
      state = next;
      events.emit("state", { state, error });
    } else if (!found) {
      tell(error as ReplBrokerError);
    } else if (block) {
      if (found[0]) onBlock(found, block);
    } else {
      for (const { wish, given } of found) {
        end(wish.key);
        guard(() => (given.onError ?? tell)(error as ReplBrokerError));
      }
    }
  }

  function onBlock(found: Entry[], { id, event, data }: Block): void {
    let isMessage = event === "message";
    let content: any;
    try {
      content = JSON.parse(data);
    } catch {}
    if (!content || (isMessage && !(isId(id) && content.topic))) {
      const text = `No broker sends this: ${data.slice(0, 99)}`;
      tell(new ReplBrokerError("malformed_event", text));
      content = {};
      isMessage = false;
    }
    for (const entry of found) {
      const { wish, given } = entry;
      const { after } = wish;
      const isNew = isId(id) && !(distance(id, after) <= 0);
      if (event === "subscribed") {
        if (!isId(after)) wish.after = id;
        entry.settle();
      } else if (event === "gap") {
        wish.after = id; // messages may come again after one of another kind than retention
        guard(() => given.onGap?.(content));
      } else if (isNew) {
        wish.after = id;
        if (isMessage && entry.matches(content.topic)) guard(() => entries.has(wish.key) && entry.handle(content as never));
      }
    }
    if (event === "topic-deleted" && content.topic && !deletions.has(id + data)) {
      deletions.add(id + data);
      if (found.some(({ matches }) => matches(content.topic))) events.emit(event, content);
    }
    if (event === "gap" && !events.emit(event, content) && found.some(({ given }) => !given.onGap)) {
      tell(new ReplBrokerError("gap", `Messages after ${content.after} are gone (${content.reason}).`));
    }
  }

  return {
    add,
    wishes,
    receive,
    state: () => state,
    pause() {
      if (state === "live") receive({ state: "reconnecting" });
    },
    close() {
      for (const key of entries.keys()) end(key);
      receive({ state: "closed" });
    },
  };
}
