import type { ReplBrokerError } from "./errors.js";

/** A message, as it is the same everywhere. */
export interface Message<T = unknown> {
  /** Its event id, opaque: a position to go on from, at any node. */
  id: string;
  topic: string;
  /** When it was taken, in RFC 3339. */
  time: string;
  /** What was published. */
  data: T;
}

/** A message is kept. */
export type Receipt = Omit<Message, "data">;

/**
 * Messages that can no longer be had. What follows is complete. It is told to each subscription
 * that it may concern; the broker does not say of which topic they were.
 */
export interface Gap {
  /** The position that the stream was at. */
  after: string;
  /** The next message that there is; null if there is none yet. */
  first_available: string | null;
  /** `retention`: trimmed; `unknown_epoch`: another cluster; `ahead`: the broker is behind `after`. */
  reason: "retention" | "unknown_epoch" | "ahead";
}

/** A topic was deleted, with its history. It may come back. */
export interface TopicDeleted {
  topic: string;
}

/**
 * - `idle`: there is no subscription, hence no stream.
 * - `connecting`: it has never worked yet.
 * - `live`: what is published arrives.
 * - `reconnecting`: it did, and will again; nothing is lost meanwhile.
 * - `closed`: by `close()`.
 */
export type State = "idle" | "connecting" | "live" | "reconnecting" | "closed";

/** The state of the stream, when it changes and at each failed attempt. */
export interface StateEvent {
  state: State;
  /** Why it is not live. */
  error?: ReplBrokerError | undefined;
}

/** What `client.on` can listen to. */
export interface ClientEvents {
  state: StateEvent;
  gap: Gap;
  "topic-deleted": TopicDeleted;
  /** What has no better place to go to. Without a listener it goes to the console. */
  error: ReplBrokerError;
}

/** How to subscribe. */
export interface SubscribeOptions {
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
export interface Subscription {
  readonly filters: readonly string[];
  /** The position up to which all has been handed over: what to give as `after` later. */
  readonly cursor: string | undefined;
  /** Resolves when it has begun: what is published from then on arrives. Also when it ends without that. */
  readonly ready: Promise<void>;
  /** No handler is called any more. */
  close(): void;
}
