/**
 * Everything that the client throws, rejects with or reports:
 *
 *     ReplBrokerError          code, status, detail
 *     ├── ProblemError         the broker said no, in its own words
 *     └── ConnectionError      no answer, or none of a broker
 *
 * The codes of the first itself: `gap`, messages are gone and nobody listens for that, and
 * `malformed_event`.
 */
declare class ReplBrokerError extends Error {
    /** Stable, for programs: one of the broker's codes, or one of the client's own. */
    readonly code: string;
    /** For people: what was wrong, and what to do. */
    readonly detail: string;
    /** The HTTP status of a problem; else 0. */
    readonly status: number;
    /** How long the broker asks to wait, in ms. */
    readonly retryAfter: number;
    constructor(
    /** Stable, for programs: one of the broker's codes, or one of the client's own. */
    code: string, 
    /** For people: what was wrong, and what to do. */
    detail: string, 
    /** The HTTP status of a problem; else 0. */
    status?: number, cause?: unknown, 
    /** How long the broker asks to wait, in ms. */
    retryAfter?: number);
}
/**
 * The broker refused: a problem of RFC 9457. `code`, `detail` and `status` are the broker's.
 */
declare class ProblemError extends ReplBrokerError {
}
/**
 * There was no answer, or not one of a broker. Its codes: `unreachable`, also for a connection
 * that breaks and for a token that cannot be had; `not_the_broker`; `no_stream`, nothing comes, for
 * instance since a proxy holds it back; `gave_up`, a call that was repeated until its time was over.
 */
declare class ConnectionError extends ReplBrokerError {
}

/** A token, or what gets one. It is asked again when the broker answers 401. */
type Token = string | (() => string | Promise<string>);

/** A message, as it is the same everywhere. */
interface Message<T = unknown> {
    /** Its event id, opaque: a position to go on from, at any node. */
    id: string;
    topic: string;
    /** When it was taken, in RFC 3339. */
    time: string;
    /** What was published. */
    data: T;
}
/** A message is kept. */
type Receipt = Omit<Message, "data">;
/**
 * Messages that can no longer be had. What follows is complete. It is told to each subscription
 * that it may concern; the broker does not say of which topic they were.
 */
interface Gap {
    /** The position that the stream was at. */
    after: string;
    /** The next message that there is; null if there is none yet. */
    first_available: string | null;
    /** `retention`: trimmed; `unknown_epoch`: another cluster; `ahead`: the broker is behind `after`. */
    reason: "retention" | "unknown_epoch" | "ahead";
}
/** A topic was deleted, with its history. It may come back. */
interface TopicDeleted {
    topic: string;
}
/**
 * - `idle`: there is no subscription, hence no stream.
 * - `connecting`: it has never worked yet.
 * - `live`: what is published arrives.
 * - `reconnecting`: it did, and will again; nothing is lost meanwhile.
 * - `closed`: by `close()`.
 */
type State = "idle" | "connecting" | "live" | "reconnecting" | "closed";
/** The state of the stream, when it changes and at each failed attempt. */
interface StateEvent {
    state: State;
    /** Why it is not live. */
    error?: ReplBrokerError | undefined;
}
/** What `client.on` can listen to. */
interface ClientEvents {
    /** The stream's state has changed, or another attempt has failed. */
    state: StateEvent;
    /** Messages of this client's topics are gone. The subscription's own `onGap` is called, too. */
    gap: Gap;
    /** A topic that is followed was deleted. */
    "topic-deleted": TopicDeleted;
    /** What has no better place to go to. Without a listener it goes to the console. */
    error: ReplBrokerError;
}
/** How to subscribe. */
interface SubscribeOptions {
    /** Where to begin: after an event id, at the `earliest` retained message, or at the `latest` (default). */
    after?: string | undefined;
    /** Ends the subscription. */
    signal?: AbortSignal | undefined;
    /** Messages are gone. Without it, and without a listener of `gap`, that is an `error` event. */
    onGap?: ((gap: Gap) => void) | undefined;
    /** The broker refuses this subscription, for good. Without it, that is an `error` event. */
    onError?: ((error: ReplBrokerError) => void) | undefined;
}
/** A subscription that is under way. */
interface Subscription {
    /** What it was asked for. */
    readonly filters: readonly string[];
    /** The position up to which all has been handed over: what to give as `after` later. */
    readonly cursor: string | undefined;
    /** Resolves when it has begun: what is published from then on arrives. Also when it ends without that. */
    readonly ready: Promise<void>;
    /** No handler is called any more. */
    close(): void;
}

/** How to iterate over messages. */
type MessagesOptions = Omit<SubscribeOptions, "onError">;

/** How to publish. */
interface PublishOptions {
    /**
     * Makes a retry safe: what is published again under the same key is kept once. The client makes
     * one for each call, and uses it for its own retries. Give one to go on after a call has failed,
     * or after a reload.
     */
    idempotencyKey?: string | undefined;
    /** Stop trying. The message may be kept all the same. */
    signal?: AbortSignal | undefined;
}

/** How much history a topic keeps; the limit that is reached first counts. */
interface Retention {
    messages: number;
    seconds: number;
    bytes: number;
    /**
     * Unused for this long, the topic is deleted: nothing was published to it, and no event stream
     * followed it. `null`: never.
     */
    idle_seconds: number | null;
}
/** A topic: its settings, and what it retains now. */
interface Topic {
    name: string;
    retention: Retention;
    messages: number;
    bytes: number;
    first_id: string | null;
    last_id: string | null;
    created_at: string;
    /** On the node that answered. */
    subscribers: number;
}
/** A page of topics. */
interface TopicPage {
    topics: Topic[];
    /** `after` of the next page; null if there is none. */
    next: string | null;
}
/** Settings of a topic. What is left out is as the operator configured it. */
interface TopicSettings {
    retention?: Partial<Retention>;
}
/** What can be done with topics. Refusals reject with a {@link ProblemError}. */
interface Topics {
    /** A page of topics, in name order, of those that `match` a filter. */
    list(options?: {
        match?: string;
        after?: string;
        limit?: number;
        signal?: AbortSignal;
    }): Promise<TopicPage>;
    /** A topic as it is now; `topic_not_found` if there is none. */
    get(name: string): Promise<Topic>;
    /**
     * Create a topic; `topic_exists` if it is there, which an earlier try whose answer was lost may
     * have caused. `put` cannot be mistaken so.
     */
    create(name: string, settings?: TopicSettings): Promise<Topic>;
    /** Create a topic, or change its settings. */
    put(name: string, settings?: TopicSettings): Promise<Topic>;
    /** Remove a topic and its history; `topic_not_found`, as with `create`, may mean that it was done. */
    delete(name: string): Promise<void>;
    /**
     * Remove all topics that `match` a filter, with their history: how many. They go in pieces; if it
     * rejects, some may have gone, and the same call removes the rest.
     */
    deleteMatching(match: string): Promise<number>;
}

/** Where the broker is, and how to talk to it. */
interface ClientOptions {
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
interface HistoryPage<T = unknown> {
    messages: Message<T>[];
    /** `after` of the next page; null if there is none. */
    next: string | null;
    /** Messages after the given position are gone. */
    gap: boolean;
}
/** How to read history. */
interface HistoryOptions {
    /** An event id or `earliest` (default). */
    after?: string;
    /** How many messages at most. */
    limit?: number;
    signal?: AbortSignal;
}
/** A client of the broker, made by {@link connect}. */
interface Client {
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
    subscribe<T = unknown>(filters: string | readonly string[], onMessage: (message: Message<T>) => unknown, options?: SubscribeOptions): Subscription;
    /**
     * The same as a loop: `for await (const message of client.messages("chat")) …`. It ends quietly
     * with the `signal` and with the client, and throws if the broker refuses. A slow loop delays
     * nobody.
     */
    messages<T = unknown>(filters: string | readonly string[], options?: MessagesOptions): AsyncGenerator<Message<T>, void, undefined>;
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
/** A client of the broker. Nothing is sent before there is something to do. */
declare function connect({ urls, token, shareTabs, callTimeout, openTimeout, silenceTimeout, }: ClientOptions): Client;

export { ConnectionError, ProblemError, ReplBrokerError, connect };
export type { Client, ClientEvents, ClientOptions, Gap, HistoryOptions, HistoryPage, Message, MessagesOptions, PublishOptions, Receipt, Retention, State, StateEvent, SubscribeOptions, Subscription, Token, Topic, TopicDeleted, TopicPage, TopicSettings, Topics };
