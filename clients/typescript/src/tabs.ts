// One client's streams for all tabs of a browser.
//
// Each tab asks for the same Web Lock. The one that gets it holds the streams, and tells the
// others on a BroadcastChannel what arrives. Every tab keeps its own cursors. So when the holder
// goes, each tab tells the next one where it is, and nothing is lost or comes twice.
//
// A holder that is closed or crashes gives up the lock by that. One that only stands still does
// not: the others ask it from time to time, and take the lock from it if it does not answer.
// Whoever has it says hello; from then on the others heed nobody else.
//
// What is said to a page that stands still may never arrive, as browsers have it. So each counts
// what it says. Who misses something has the streams of this tab begun again, where they were.

import type { HeldStreams, Post, Streams } from "./posts.js";
import type { Subscriptions } from "./subscriptions.js";

/** What tabs say to each other: what the streams say, or a call of their holder, or just hello. */
interface Talk {
  sender: string;
  /** Of all that it has said. */
  count: number;
  post?: Post;
  call?: keyof HeldStreams;
  argument?: unknown;
}

const PING_MS = 5000;
const PINGS_MAX = 3; // without an answer

export function makeTabs(
  name: string,
  tab: string,
  own: Subscriptions,
  hold: (post: (post: Post) => void) => HeldStreams,
): Streams {
  const channel = new BroadcastChannel(name);
  let release = (): void => {};
  const end = new Promise<void>((resolve) => (release = resolve));
  const timer = setInterval(ask, PING_MS);
  const counts = new Map<string, number>(); // the last of each tab
  let count = 0;
  let held: HeldStreams | undefined; // if this tab is the holder
  let holder: string | undefined;
  let isThere: boolean | undefined; // true: and the others may know. false: it was closed
  let unanswered = 0;

  /** Have a lock until the end, or do not keep it. */
  const lock = (of: string, options: LockOptions, got: () => unknown): Promise<unknown> =>
    navigator.locks.request(of, options, () => isThere === false || got() || end);

  const say = (talk?: Omit<Talk, "sender" | "count">): void => {
    if (isThere) channel.postMessage({ sender: tab, count: ++count, ...talk });
  };

  /**
   * Call the holder. If there is none, the next one asks for all wishes anyway.
   * (The build shortens names of properties, and what is marked as a key with them.)
   */
  const call = (call: keyof HeldStreams) => (argument?: unknown): void => {
    if (held) held[call](argument as never);
    else say({ call, argument });
  };

  const wish = (): void => {
    call(/* @__KEY__ */ "drop")(tab);
    call(/* @__KEY__ */ "want")(own.wishes());
  };

  // --- who holds them ---

  function stand(options: LockOptions = {}): void {
    lock(name, options, takeOver).catch(() => {
      if (!isThere) return;
      follow(); // it was taken away
      stand();
    });
  }

  /** Somebody else has the streams now. */
  function follow(sender?: string): void {
    held?.close();
    held = undefined;
    unanswered = 0;
    holder = sender;
    wish();
  }

  function takeOver(): void {
    held = hold((post) => {
      say({ post });
      own.receive(post);
    });
    say();
    wish();
  }

  /** From time to time: is the holder there? */
  function ask(): void {
    if (held || unanswered++ < PINGS_MAX) {
      call(/* @__KEY__ */ "poke")();
    } else if (isThere) {
      unanswered = 0;
      stand({ steal: true });
    }
  }

  // --- what the others say ---

  channel.onmessage = ({ data }: MessageEvent<Talk>) => {
    const { sender, count, post, call, argument } = data;
    const before = counts.get(sender);
    if (before === undefined) watch(sender);
    const isLost = count !== (before ?? 0) + 1;
    counts.set(sender, count);
    if (call) {
      held?.[call](argument as never);
      if (held && isLost) say(); // what else did they want? All are asked.
    } else if (!post) {
      follow(sender);
    } else if (!held && sender === (holder ??= sender)) {
      unanswered = 0;
      if (isLost) wish();
      else own.receive(post);
    }
  };

  /** When a tab is gone, so are its subscriptions. */
  function watch(other: string): void {
    lock(name + other, {}, () => {
      counts.delete(other);
      held?.drop(other);
      return true;
    });
  }

  // Others see by this lock that this tab is there. So it must have it before it is heard of.
  lock(name + tab, {}, () => {
    isThere = true;
    wish();
    stand();
  }).catch(takeOver); // no locks for this page: it has its own streams

  return {
    want: call(/* @__KEY__ */ "want"),
    drop: call(/* @__KEY__ */ "drop"),
    wake: call(/* @__KEY__ */ "wake"),
    close() {
      held?.close();
      clearInterval(timer);
      isThere = false;
      release();
      channel.close();
    },
  };
}
