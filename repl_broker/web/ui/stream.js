// Talking to the broker: calls, and event streams that never give up.
//
// Streams are read with fetch: unlike EventSource it shows why a stream was refused,
// and it lets us count messages without making an event of each.

import { askToken, authorization } from "./token.js";

const ROOT = new URL("../", document.baseURI); // beside the page, behind any proxy
const CALL_MILLISECONDS_MAX = 15_000;
const WAIT_MILLISECONDS_MAX = 10_000;
const TEMPORARY = new Set([408, 429, 500, 502, 503, 504]);

/** The broker said no, or (status 0) did not answer at all. */
export class Problem extends Error {
  constructor(status, { title, detail, code } = {}, retryAfter = 0) {
    super(detail || title || `The node answered with status ${status}.`);
    this.status = status;
    this.title = title || (status ? `Status ${status}` : "No answer");
    this.code = code ?? "";
    this.retryAfter = retryAfter; // seconds
  }
}

async function problemOf(response) {
  const said = await response.json().catch(() => null); // a proxy may answer with a page
  return new Problem(response.status, said ?? {}, Number(response.headers.get("Retry-After")) || 0);
}

/** Call the API; the answer's JSON, or null. Throws Problem. */
export async function call(method, path, body, headers = {}) {
  const used = authorization();
  let response;
  try {
    response = await fetch(new URL(`v1/${path}`, ROOT), {
      method,
      headers: { ...used, ...(body !== undefined && { "Content-Type": "application/json" }), ...headers },
      body,
      cache: "no-store",
      signal: AbortSignal.timeout(CALL_MILLISECONDS_MAX),
    });
  } catch {
    throw new Problem(0, { title: "No answer", detail: "The node does not answer." });
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await problemOf(response);
  // Nothing was done, so that asking again does it once.
  if (response.status === 401 && (await askToken(problem, used))) return call(method, path, body, headers);
  throw problem;
}

/** A random UUID. crypto.randomUUID exists in secure contexts only; plain HTTP on a LAN is none. */
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** {id, event, data} of a block of a stream. */
export function parse(block) {
  const found = { id: "", event: "message", data: null };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) found[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return found;
}

/**
 * Follow a stream until `signal` aborts, reconnecting whenever it breaks.
 *
 * `on.blocks(blocks)` gets whole blocks, as text, as many as have arrived together;
 * `on.state("live" | "waiting", problem?)` tells how it goes. After `silence`
 * milliseconds without a byte the connection counts as dead. Where `resume`, it goes
 * on after the last id. Throws Problem if the stream is refused for good.
 */
export async function follow(path, { signal, silence, resume = false, on }) {
  let cursor = "";
  let attempt = 0;
  while (!signal.aborted) {
    const connection = new AbortController();
    const stop = () => connection.abort();
    signal.addEventListener("abort", stop);
    let watchdog = setTimeout(stop, silence);
    let wait = 0;
    const used = authorization();
    try {
      const response = await fetch(new URL(path, ROOT), {
        headers: { ...used, ...(cursor && { "Last-Event-ID": cursor }) },
        cache: "no-store",
        signal: connection.signal,
      });
      if (!response.ok) throw await problemOf(response);
      const type = response.headers.get("Content-Type") ?? "";
      if (!type.startsWith("text/event-stream")) {
        throw new Problem(502, { title: "Not the broker", detail: `The answer is ${type || "of no type"}.` });
      }
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, silence);
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        if (!blocks.length) continue;
        attempt = 0;
        on.state("live");
        if (resume) cursor = /^id: (.+)$/m.exec(blocks.at(-1))?.[1] ?? cursor;
        on.blocks(blocks);
      }
      if (!signal.aborted) on.state("waiting");
    } catch (error) {
      if (signal.aborted) return;
      const known = error instanceof Problem;
      if (known && (error.status === 401 || error.status === 403)) {
        clearTimeout(watchdog);
        on.state("waiting", error);
        if (!(await askToken(error, used))) throw error;
        continue;
      }
      if (known && !TEMPORARY.has(error.status)) throw error;
      wait = known ? error.retryAfter * 1000 : 0;
      on.state("waiting", known ? error : undefined);
    } finally {
      clearTimeout(watchdog);
      signal.removeEventListener("abort", stop);
      connection.abort();
    }
    const most = Math.min(WAIT_MILLISECONDS_MAX, 400 * 2 ** attempt++);
    await pause(Math.max(Math.min(wait, WAIT_MILLISECONDS_MAX), 100 + Math.random() * most), signal);
  }
}

/** Wait; less if the stream is given up, or if the network or the page comes back. */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const over = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", over);
      removeEventListener("online", over);
      removeEventListener("pageshow", over);
      resolve();
    };
    const timer = setTimeout(over, milliseconds);
    signal.addEventListener("abort", over);
    addEventListener("online", over);
    addEventListener("pageshow", over);
  });
}
