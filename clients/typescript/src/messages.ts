import type { ReplBrokerError } from "./errors.js";
import type { Message, SubscribeOptions, Subscription } from "./types.js";

/** How to iterate over messages. */
export type MessagesOptions = Omit<SubscribeOptions, "onError">;

const QUEUE_MAX = 1000; // messages

type Subscribe<T> = (onMessage: (message: Message<T>) => void, options: SubscribeOptions) => Subscription;

/**
 * A subscription to loop over. A loop that is slow delays nobody and fills no memory: when too
 * much waits for it, the subscription is ended, and begun again where it was once that is read.
 */
export async function* messages<T>(
  subscribe: Subscribe<T>,
  options: MessagesOptions,
): AsyncGenerator<Message<T>, void, undefined> {
  const { signal } = options;
  const end = new AbortController();
  let { after } = options;
  let queue: (Message<T> | ReplBrokerError)[] = [];
  let subscription: Subscription | undefined;
  let wake = (): void => {};
  signal?.addEventListener("abort", () => wake(), end);
  const add = (found: Message<T> | ReplBrokerError): void => {
    if (queue.push(found) >= QUEUE_MAX) {
      after = subscription!.cursor;
      subscription!.close();
      subscription = undefined;
    }
    wake();
  };
  try {
    while (!signal?.aborted) {
      subscription ??= subscribe(add, { ...options, after, onError: add, signal: end.signal });
      if (!queue.length) await new Promise<void>((resolve) => (wake = resolve));
      const read = queue;
      queue = [];
      for (const found of read) {
        if (found instanceof Error) throw found;
        if (!signal?.aborted) yield found;
      }
    }
  } finally {
    end.abort();
  }
}
