// One client's streams for all tabs of a browser.
//
// Each tab asks for the same Web Lock. The one that gets it holds the streams, and tells the
// others on a BroadcastChannel what arrives. Every tab keeps its own cursors. So when the holder
// goes, each tab tells the next one where it is, and nothing is lost or comes twice.
//
// A holder that is closed or crashes gives up the lock by that. One that only stands still does
// not: the others ask it from time to time, and take the lock from it if it does not answer.
// Whoever has it says hello; from then on the others heed nobody else.

import type { HeldStreams, Post, Streams } from "./posts.js";
import type { Subscriptions } from "./subscriptions.js";

/** What tabs say to each other: what the streams say, or a call of their holder, or just hello. */
interface Talk {
  sender: string;
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
  const known = new Set<string>(); // tabs that are watched
  let held: HeldStreams | undefined; // if this tab is the holder
  let holder: string | undefined;
  let isThere = false; // and the others may know
  let isClosed = false;
  let unanswered = 0;

  /** Have a lock until the end, or do not keep it. */
  const lock = (of: string, options: LockOptions, got: () => unknown): Promise<unknown> =>
    navigator.locks.request(of, options, () => isClosed || got() || end);

  const say = (talk?: Omit<Talk, "sender">): void => {
    if (isThere && !isClosed) channel.postMessage({ sender: tab, ...talk });
  };

  /** Call the holder. If there is none, the next one asks for all wishes anyway. */
  const call = (call: keyof HeldStreams) => (argument?: unknown): void => {
    if (held) held[call](argument as never);
    else say({ call, argument });
  };

  const wish = (): void => call("want")(own.wishes());

  // --- who holds them ---

  function stand(options: LockOptions = {}): void {
    // If it is taken away, somebody else has the streams now, and says hello.
    lock(name, options, takeOver).catch(() => isClosed || stand());
  }

  function takeOver(): void {
    held = hold((post) => {
      say({ post });
      own.receive(post);
    });
    known.clear();
    say();
    wish();
  }

  /** From time to time: is the holder there? */
  function ask(): void {
    if (held || unanswered++ < PINGS_MAX) {
      call("poke")();
    } else if (isThere) {
      unanswered = 0;
      stand({ steal: true });
    }
  }

  // --- what the others say ---

  channel.onmessage = ({ data }: MessageEvent<Talk>) => {
    const { sender, post, call, argument } = data;
    if (call) {
      held?.[call](argument as never);
      if (held) watch(sender);
    } else if (!post) {
      held?.close();
      held = undefined;
      unanswered = 0;
      holder = sender;
      wish();
    } else if (!held && sender === (holder ??= sender)) {
      unanswered = 0;
      own.receive(post);
    }
  };

  /** When a tab is gone, so are its subscriptions. */
  function watch(other: string): void {
    if (known.has(other)) return;
    known.add(other);
    lock(name + other, {}, () => {
      known.delete(other);
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
    want: call("want"),
    drop: call("drop"),
    wake: call("wake"),
    close() {
      held?.close();
      clearInterval(timer);
      isClosed = true;
      release();
      channel.close();
    },
  };
}
