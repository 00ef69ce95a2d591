import { ReplBrokerError } from "./errors.js";
import type { ClientEvents } from "./types.js";

type Name = keyof ClientEvents;
type Handler = (event: never) => unknown;

/** Listeners by event. An `error` that nobody listens for is reported, and never lost. */
export interface Emitter {
  /** Returns what ends it. */
  on(name: Name, listener: Handler): () => void;
  /** Call `own` handlers and all who listen. Returns whether each of `own`, or anybody, was there. */
  emit<N extends Name>(name: N, event: ClientEvents[N], own?: (Handler | undefined)[]): boolean;
  /** Call a function of the user's. What it throws, at once or later, is an `error`. */
  guard(call: () => unknown, isLast?: boolean): void;
}

export function makeEmitter(): Emitter {
  const listeners: { [name in Name]?: Set<Handler> } = {};

  function on(name: Name, listener: Handler): () => void {
    const found = (listeners[name] ??= new Set());
    found.add(listener);
    return () => void found.delete(listener);
  }

  function emit(name: Name, event: unknown, own: (Handler | undefined)[] = []): boolean {
    const found = [...(listeners[name] ?? [])];
    const isError = name === "error";
    for (const handler of [...own, ...found]) guard(() => handler?.(event as never), isError);
    const isHeard = found.length > 0 || (own.length > 0 && own.every(Boolean));
    if (isError && !isHeard) report(event);
    return isHeard;
  }

  function guard(call: () => unknown, isLast?: boolean): void {
    (async () => call())().catch((cause: unknown) => {
      const error = new ReplBrokerError("handler_failed", `A handler failed: ${cause}`, 0, cause);
      if (isLast) report(error);
      else emit("error", error);
    });
  }

  return { on, emit, guard };
}

// A page's own reporting sees it. Elsewhere reportError may end the process, as in Deno.
const report = (error: unknown): void => (globalThis.document ? reportError : console.error)(error);
