import type { ClientEvents } from "./types.js";

type Name = keyof ClientEvents;
type Handler = (event: never) => unknown;

/** Listeners by event. An `error` that nobody listens for is reported, and never lost. */
export interface Emitter {
  /** Returns what ends it. */
  on(name: Name, listener: Handler): () => void;
  /** Call all who listen. Returns how many there are. */
  emit<N extends Name>(name: N, event: ClientEvents[N]): number;
}

export function makeEmitter(): Emitter {
  const listeners: { [name in Name]?: Set<Handler> } = {};

  function on(name: Name, listener: Handler): () => void {
    const found = (listeners[name] ??= new Set());
    found.add(listener);
    return () => void found.delete(listener);
  }

  function emit(name: Name, event: unknown): number {
    const found = [...(listeners[name] ?? [])];
    for (const listener of found) guard(() => listener(event as never));
    if (name === "error" && !found.length) report(event);
    return found.length;
  }

  return { on, emit };
}

/** Call a function of the user's. What it throws, at once or later, is reported, and stops nobody. */
export const guard = (call: () => unknown): unknown => (async () => call())().catch(report);

// A page's own reporting sees it. Elsewhere reportError may end the process, as in Deno.
const report = (error: unknown): void => (globalThis.document ? reportError : console.error)(error);
