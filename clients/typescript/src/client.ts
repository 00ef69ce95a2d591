import { now } from "./clock.js";
import { makeEmitter } from "./emitter.js";
import { makeHttp, randomKey, type Token } from "./http.js";
import { makeLanes } from "./lanes.js";
import { type MessagesOptions, messages } from "./messages.js";
import type { HeldStreams, Post, Streams } from "./posts.js";
import { type PublishOptions, publish } from "./publish.js";
import { makeSubscriptions } from "./subscriptions.js";
import { makeTabs } from "./tabs.js";
import { query, type Topics, topicPath, topicsOf } from "./topics.js";
import type { ClientEvents, Message, Receipt, State, SubscribeOptions, Subscription } from "./types.js";

/** Where the broker is, and how to talk to it. */
export interface ClientOptions {
  /** The URLs of the nodes, or of what stands before them. A relative one is relative to the page. */
  urls: string | readonly string[];
  /**
   * Sent as `Authorization: Bearer …`. A function is asked again when the broker answers 401, and
   * when nothing comes of it for 10 s.
   */
  token?: Token;
  /**
   * One stream for all tabs of the browser; on in pages, where the browser can. Tabs share if they
   * have the same `urls` and the same token. If each has a token of its own, give a string that
   * says who may share, such as the user's id. `false`: each tab has its own stream.
   */
  shareTabs?: boolean | string;
  /** How long a call goes on trying, in ms. Default: 30,000. */
  callTimeout?: number;
  /** How long a stream may take to begin, in ms. Default: 10,000. */
  openTimeout?: number;
  /** After how many ms of silence a stream is taken for dead: three heartbeats. Default: 45,000. */
  silenceTimeout?: number;
}

/** A page of history. */
export interface HistoryPage<T = unknown> {
  messages: Message<T>[];
  /** `after` of the next page; null if there is none. */
  next: string | null;
  /** Messages after the given position are gone. */
  gap: boolean;
}

/** How to read history. */
export interface HistoryOptions {
  /** An event id or `earliest` (default). */
  after?: string;
  /** How many messages at most. */
  limit?: number;
  signal?: AbortSignal;
}

/** A client of the broker, made by {@link connect}. */
export interface Client {
  /** What the stream is doing. */
  readonly state: State;

  /** Listen to an event. Returns what ends that. */
  on<Name extends keyof ClientEvents>(name: Name, listener: (event: ClientEvents[Name]) => void): () => void;

  /**
   * Have each message of these topics handed over, in the broker's order, none twice, none missing,
   * until the subscription is closed. All subscriptions share one stream.
   *
   * @param filters topics, or patterns: `orders.*`, `orders.>`.
   * @param onMessage if it throws, or rejects, that is reported as an uncaught error is, and the
   *   others are called all the same.
   * @throws AbortError if the client is closed, or the signal aborted.
   */
  subscribe<T = unknown>(
    filters: string | readonly string[],
    onMessage: (message: Message<T>) => unknown,
    options?: SubscribeOptions,
  ): Subscription;

  /**
   * The same as a loop: `for await (const message of client.messages("chat")) …`. It ends quietly
   * with the `signal` and with the client, and throws if the broker refuses. A slow loop delays
   * nobody.
   */
  messages<T = unknown>(
    filters: string | readonly string[],
    options?: MessagesOptions,
  ): AsyncGenerator<Message<T>, void, undefined>;

  /**
   * Publish a message. It resolves when the message is kept. It is tried again, at other nodes, as
   * long as that may help, and kept once however often.
   */
  publish(topic: string, data: unknown, options?: PublishOptions): Promise<Receipt>;

  /** A page of what a topic retains, oldest first. */
  history<T = unknown>(topic: string, options?: HistoryOptions): Promise<HistoryPage<T>>;

  /** Topics: list, get, create, put, delete. */
  readonly topics: Topics;

  /** End all subscriptions and loops. No handler is called any more. */
  close(): void;
}

const ANSWERED_MS_MIN = 2000; // between two calls that wake the streams
const AWAY_MS_MAX = 2000; // a page in which this much time passes was not put away

/** A client of the broker. Nothing is sent before there is something to do. */
export function connect({
  urls,
  token = "",
  shareTabs = !!globalThis.document,
  callTimeout = 30_000,
  openTimeout = 10_000,
  silenceTimeout = 45_000,
}: ClientOptions): Client {
  const tab = randomKey();
  const http = makeHttp(urls, token, callTimeout);
  const events = makeEmitter();
  const subscriptions = makeSubscriptions(tab, events, () => streams);
  const page = new AbortController(); // listening to it, until the client is closed
  let streams: Streams | undefined;
  let turn = 0;
  let answeredAt = -Infinity; // when a call last woke the streams
  let away: ReturnType<typeof setTimeout> | undefined; // set while the page is put away

  async function resume(): Promise<void> {
    suspend();
    const mine = turn;
    const canShare = shareTabs && globalThis.navigator?.locks && globalThis.BroadcastChannel;
    const who =
      canShare && (shareTabs === true ? await http.token().then((token) => `token ${token}`, () => "") : shareTabs);
    if (turn !== mine) return;
    const hold = (post: (post: Post) => void): HeldStreams => makeLanes(http, openTimeout, silenceTimeout, post);
    streams = who
      ? makeTabs(`repl-broker 1 ${urls} ${who}`, tab, subscriptions, hold)
      : hold(subscriptions.receive);
    streams.want(subscriptions.wishes());
  }

  function suspend(): void {
    turn++;
    clearTimeout(away);
    away = undefined;
    streams?.close();
    streams = undefined;
  }

  /** A page that is put away gives the streams to another tab, and its connections back. */
  function putAway(): void {
    suspend();
    subscriptions.pause();
    away = setTimeout(resume, AWAY_MS_MAX); // timers of a page that was really put away stand still
  }

  /** The page lives, and perhaps its connections do not. Browsers say so in different orders. */
  function wake(certain?: boolean): void {
    if (!away) streams?.wake(certain);
    else if (!globalThis.document?.hidden) void resume();
  }

  const on = (act: (event: Event) => unknown, ...names: string[]): void => {
    // Some of these are the document's, and do not bubble.
    for (const name of names) globalThis.addEventListener?.(name, act, { capture: true, signal: page.signal });
  };
  on(putAway, "pagehide", "freeze");
  on(() => away && resume(), "pageshow", "resume");
  on(() => wake(), "visibilitychange");
  on(() => wake(true), "online", "offline");
  void resume();

  /** The broker answers again: a stream that waits for its next attempt need not wait. */
  async function answered<T>(call: Promise<T>): Promise<T> {
    const answer = await call;
    if (subscriptions.state() !== "live" && now() - answeredAt > ANSWERED_MS_MIN) {
      answeredAt = now();
      wake();
    }
    return answer;
  }

  const subscribe: Client["subscribe"] = (filters, onMessage, options) => {
    page.signal.throwIfAborted(); // closed
    return subscriptions.add(filters, onMessage, options);
  };

  return {
    get state() {
      return subscriptions.state();
    },
    on: events.on,
    subscribe,
    messages: (filters, options = {}) =>
      messages((onMessage, own) => subscribe(filters, onMessage, own), {
        ...options,
        signal: AbortSignal.any([page.signal, options.signal ?? page.signal]),
      }),
    publish: (topic, data, options = {}) => answered(publish(http, topic, data, options)),
    history: (topic, { signal, ...options } = {}) => http.call("GET", `${topicPath(topic)}/messages${query(options)}`, signal),
    topics: topicsOf(http),
    close() {
      page.abort();
      suspend();
      subscriptions.close();
    },
  };
}
