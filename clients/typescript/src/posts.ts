// What goes between the side that holds the streams and the side that has the handlers. Both are
// in one tab, or in two: then a BroadcastChannel carries it, so these are plain values.

import type { Block } from "./blocks.js";
import type { ErrorText } from "./errors.js";
import type { State } from "./types.js";

/** A subscription as the streams' side knows it. */
export interface Wish {
  /** It begins with the tab's. */
  key: string;
  filters: readonly string[];
  /** An event id, `earliest` or `latest`. */
  after: string;
}

/** From the streams. */
export interface Post {
  /** The subscriptions that it is for. Without: for all. */
  to?: string[];
  block?: Block;
  state?: State;
  /** With `to`: these are refused. With a `state`: why. Else: tell the user. */
  error?: ErrorText | undefined;
}

/** Where the streams are: here, or in another tab. */
export interface Streams {
  want(wishes: Wish[]): void;
  /** The subscriptions whose keys begin so. */
  drop(prefix: string): void;
  wake(certain: boolean): void;
  close(): void;
}

/** The streams themselves. */
export interface HeldStreams extends Streams {
  /** Look after them, and say again what the state is: somebody has asked. */
  poke(): void;
}
