import { jitter, now, pause, WAIT_MS_MAX } from "./clock.js";
import { ConnectionError, ProblemError, ReplBrokerError } from "./errors.js";

/** A token, or what gets one. It is asked again when the broker answers 401. */
export type Token = string | (() => string | Promise<string>);

/** The nodes, which of them is asked at the moment, and the token. */
export interface Http {
  /** The nodes; the first is the one to ask. */
  urls: string[];
  /** The node to ask. */
  url(): string;
  /** This node does not answer: ask another one from now on, unless that was done meanwhile. */
  leave(url: string): void;
  /** What the token is now; "" without one. */
  token(): Promise<string>;
  /** One request to the present node, with a fresh token if need be. It gives a 2xx of this type. */
  send(path: string, type: string, init: RequestInit): Promise<Response>;
  /** The JSON of an answer. Asks other nodes, and again under the same key, as long as that may help. */
  call<Answer>(method: string, path: string, signal?: AbortSignal, data?: unknown, key?: string): Promise<Answer>;
}

/** 128 random bits. (crypto.randomUUID is there only over TLS and on localhost.) */
export const randomKey = (): string => crypto.getRandomValues(new Uint32Array(4)).join("-");

const ATTEMPT_MS_MAX = 10_000;
const RETRY_BASE_MS = 250;

export function makeHttp(
  given: string | readonly string[],
  own: Token,
  timeout: number,
): Http {
  const urls = [given].flat().map((each) => new URL(each, globalThis.location?.href).href.replace(/\/+$/, ""));
  let held: Promise<string> | undefined;
  const url = (): string => urls[0] as string;

  function leave(left: string): void {
    if (left === url()) urls.push(urls.shift() as string);
    held = undefined; // who knows how long this has lasted
  }

  const token = (): Promise<string> =>
    (held ??= (async () => (typeof own === "string" ? own : Promise.race([own(), late()])))());

  const late = (signal = AbortSignal.timeout(ATTEMPT_MS_MAX)): Promise<never> =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject("no token comes")));

  async function send(path: string, type: string, init: RequestInit, isAgain?: boolean): Promise<Response> {
    const node = url();
    const asked = token();
    // Where there is nothing to wait for, no signal is listened to: in Deno that holds the process.
    const bearer = typeof own === "string" ? own : await Promise.race([asked, late(init.signal as AbortSignal)]);
    const response = await fetch(node + path, {
      ...init,
      headers: { ...init.headers, ...(bearer && { Authorization: `Bearer ${bearer}` }) },
    });
    const { ok, status, headers } = response;
    const found = headers.get("Content-Type") ?? "";
    // A POST that was redirected may have become a GET: only 201 says that it was done.
    if (ok && (init.method === "POST" ? status === 201 : status === 204 || found.includes(type))) return response;
    if (status === 401 && !isAgain) {
      if (held === asked) held = undefined; // else another one was asked for meanwhile
      return send(path, type, init, true);
    }
    const { code, detail } = found.includes("json") ? await response.json() : response;
    // A date, which a proxy may send, is not heeded: clocks differ.
    const wait = Math.min((headers.get("Retry-After") as unknown as number) * 1000 || 0, WAIT_MS_MAX);
    throw code
      ? new ProblemError(code, detail, status, 0, wait)
      : new ConnectionError("not_the_broker", `${node} is no broker: status ${status}, ${found}.`, 0, 0, wait);
  }

  async function call(method: string, path: string, given?: AbortSignal, data?: unknown, key = randomKey()) {
    const end = now() + timeout;
    const body = JSON.stringify(data);
    const headers = /P/.test(method) && { "Content-Type": "application/json", "Idempotency-Key": key };
    for (let attempt = 1; ; attempt++) {
      const node = url();
      const limit = AbortSignal.timeout(Math.min(ATTEMPT_MS_MAX, Math.abs(end - now())) | 1);
      const signal = AbortSignal.any([limit, given ?? limit]);
      let error: ReplBrokerError;
      try {
        const response = await send(path, "json", { method, headers, body, signal } as RequestInit);
        return await (response.status === 204 || response.json());
      } catch (found) {
        given?.throwIfAborted();
        error = broken(node, found);
      }
      if (!isTemporary(error)) throw error;
      leave(node);
      // The other nodes at once; then with patience.
      const wait = attempt % urls.length ? 0 : Math.max(error.retryAfter, jitter(Math.min(attempt, 4), RETRY_BASE_MS));
      if (now() + wait >= end) {
        throw new ConnectionError("gave_up", `Gave up after ${timeout} ms. ${error.detail}`, 0, error);
      }
      await pause(wait, given);
    }
  }

  return { urls, url, leave, token, send, call };
}

/** What went wrong with a node, if it has not said so itself. */
export const broken = (url: string, why: unknown): ReplBrokerError =>
  why instanceof ReplBrokerError
    ? why
    : new ConnectionError("unreachable", `The connection to ${url} failed: ${(why as Error).cause ?? why}`, 0, why);

/** Whether the same request may well succeed in a moment, here or at another node. */
export const isTemporary = (error: ReplBrokerError): boolean =>
  error instanceof ConnectionError || /408|429|5../.test(`${error.status}`);
