// A broker that says what a test has it say: fetch, scripted, and time that stands still.

import { afterEach, beforeEach, vi } from "vitest";
import { type Client, type ClientOptions, connect, type ReplBrokerError, type StateEvent } from "../src/index.js";

export interface Asked {
  method: string;
  url: URL;
  headers: Headers;
  body: unknown;
  signal: AbortSignal | undefined;
}

type Answer = (asked: Asked) => Response | Promise<Response>;

/** What was asked for, in order. */
export let asked: Asked[] = [];
let answer: Answer;
const clients: Client[] = [];

/** How requests are answered from now on. Without an answer they wait for ever. */
export function answering(next: Answer): void {
  answer = next;
}

beforeEach(() => {
  asked = [];
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval", "performance", "Date"] });
  vi.spyOn(Math, "random").mockReturnValue(0.5); // waits are half of what they may be
  vi.stubGlobal("fetch", async (url: string, init: RequestInit = {}) => {
    const request: Asked = {
      method: init.method ?? "GET",
      url: new URL(url),
      headers: new Headers(init.headers),
      body: init.body,
      signal: init.signal ?? undefined,
    };
    asked.push(request);
    const { signal } = request;
    return await new Promise<Response>((resolve, reject) => {
      signal?.addEventListener("abort", () => reject(signal.reason));
      Promise.resolve(answer(request)).then(resolve, reject);
    });
  });
});

/** End what `open` gave. */
export function closeAll(): void {
  for (const client of clients.splice(0)) client.close();
}

afterEach(() => {
  closeAll();
  vi.restoreAllMocks();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** A client, with what it has reported. */
export function open(options: Partial<ClientOptions> = {}) {
  const client = connect({ urls: "http://a.test", ...options });
  const errors: ReplBrokerError[] = [];
  const states: StateEvent[] = [];
  client.on("error", (error) => errors.push(error));
  client.on("state", (state) => states.push(state));
  clients.push(client);
  return { client, errors, states };
}

/** Let time pass, and all that follows from it happen. */
export async function pass(ms = 0): Promise<void> {
  await vi.advanceTimersByTimeAsync(ms);
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  await vi.advanceTimersByTimeAsync(0);
}

/** An event stream that is open until it ends, breaks, or is given up. */
export class Body {
  readonly response: Response;
  #controller!: ReadableStreamDefaultController<Uint8Array>;
  isGivenUp = false;

  constructor(signal?: AbortSignal, type = "text/event-stream") {
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => void (this.#controller = controller),
      cancel: () => void (this.isGivenUp = true),
    });
    signal?.addEventListener("abort", () => {
      if (this.isGivenUp) return;
      this.isGivenUp = true;
      this.#controller.error(signal.reason);
    });
    this.response = new Response(body, { headers: { "Content-Type": type } });
  }

  async send(text: string | Uint8Array): Promise<void> {
    this.enqueue(typeof text === "string" ? new TextEncoder().encode(text) : text);
    await pass();
  }

  /** Send, and do not wait until it is read. */
  enqueue(bytes: Uint8Array): void {
    this.#controller.enqueue(bytes);
  }

  /** `subscribed`, as the broker begins. */
  async begin(id = "0000000a-1", retry = 2000): Promise<void> {
    await this.send(`retry: ${retry}\nid: ${id}\nevent: subscribed\ndata: {"topics":[],"node":"n1","position":"${id}"}\n\n`);
  }

  async message(id: string, data: unknown, topic = "t"): Promise<void> {
    await this.send(`id: ${id}\ndata: ${JSON.stringify({ id, topic, time: "", data })}\n\n`);
  }

  async heartbeat(id: string): Promise<void> {
    await this.send(`id: ${id}\nevent: heartbeat\ndata: {"position":"${id}"}\n\n`);
  }

  /** How a node that shuts down ends a stream. */
  async goodbye(retry = 2000): Promise<void> {
    await this.send(`retry: ${retry}\nevent: goodbye\ndata: {"reason":"shutting_down"}\n\n`);
    await this.end();
  }

  async end(): Promise<void> {
    this.#controller.close();
    await pass();
  }

  async break(): Promise<void> {
    this.#controller.error(new TypeError("terminated"));
    await pass();
  }
}

/** A refusal as the broker words it. */
export function problem(status: number, code: string, headers: Record<string, string> = {}): Response {
  const body = JSON.stringify({ type: `/docs#${code}`, title: code, status, code, detail: `It is ${code}.` });
  return new Response(body, { status, headers: { "Content-Type": "application/problem+json", ...headers } });
}

export const json = (value: unknown, status = 200): Response =>
  new Response(JSON.stringify(value), { status, headers: { "Content-Type": "application/json" } });
