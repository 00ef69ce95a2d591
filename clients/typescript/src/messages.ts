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
  let queue: Message<T>[] = [];
  let error: ReplBrokerError | undefined;
  let subscription: Subscription | undefined;
  let wake = (): void => {};
  signal?.addEventListener("abort", () => wake(), end);
  const onMessage = (message: Message<T>): void => {
    queue.push(message);
    if (queue.length >= QUEUE_MAX) {
      after = message.id;
      subscription!.close();
      subscription = undefined;
    }
    wake();
  };
  const onError = (found: ReplBrokerError): void => {
    error = found;
    wake();
  };
  try {
    while (!signal?.aborted) {
      if (error) throw error;
      subscription ??= subscribe(onMessage, { ...options, after, onError, signal: end.signal });
      if (!queue.length) await new Promise<void>((resolve) => (wake = resolve));
      const read = queue;
      queue = [];
      for (const message of read) if (!signal?.aborted) yield message;
    }
  } finally {
    end.abort();
  }
}
