import { type Block, blockReader } from "./blocks.js";
import { jitter, now, WAIT_MS_MAX } from "./clock.js";
import { ConnectionError, type ReplBrokerError } from "./errors.js";
import { broken, type Http, isTemporary } from "./http.js";

const RETRY_MS_MIN = 100; // whatever the broker says
const ASLEEP_MS_MIN = 5000;

/**
 * One event stream that is kept open until `stop`: it watches for silence, backs off, and goes to
 * the next node.
 *
 *     waiting ──▶ opening ──▶ open
 *        ▲           │          │
 *        └───────────┴──────────┘
 */
export interface Stream {
  isOpen(): boolean;
  /** Connect now, and close what was open. */
  start(): void;
  stop(): void;
  /**
   * The page is shown again or hidden, or the network is back: then it is `certain` that connections broke,
   * and there is no need to wait to see it.
   */
  wake(certain?: boolean): void;
  /**
   * Has the time come to connect, or to take it for dead? The timer asks that; but timers of
   * hidden pages are late by up to a minute, so whoever has a better one may ask, too.
   */
  look(): void;
}

/**
 * @param query what to ask for; asked at each attempt.
 * @param lost it is broken, and will be mended; `failures` counts since it worked. 0: the broker
 *     refuses it, and nothing more is done.
 */
export function makeStream(
  http: Http,
  openTimeout: number,
  silenceTimeout: number,
  query: () => string,
  onBlock: (block: Block) => void,
  lost: (error: ReplBrokerError, failures: number) => void,
): Stream {
  let attempt: AbortController | undefined; // the one under way
  let isOpen = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let url = "";
  let failures = 0;
  let base = 2000; // until the broker says otherwise
  let skew: number; // between the clocks: the one that counts stands still while the machine sleeps
  let due = 0; // the next attempt, or the end of patience with this one

  function stop(): void {
    clearTimeout(timer);
    isOpen = false;
    attempt?.abort();
    attempt = undefined;
  }

  function start(): void {
    stop();
    due = now() + openTimeout;
    url = http.url();
    skew = Infinity; // not known
    void run((attempt = new AbortController()));
    look();
  }

  function look(): void {
    clearTimeout(timer);
    const before = skew;
    skew = Date.now() - now();
    if (skew - before > ASLEEP_MS_MIN) {
      start();
      lost(new ConnectionError("no_stream", "The machine slept, and its connections with it."), 1);
    } else if (now() < due) timer = setTimeout(look, Math.min(due - now(), WAIT_MS_MAX));
    else if (!attempt) start();
    else {
      const text =
        `Nothing comes from ${url}: it hangs, or a proxy buffers it (nginx: proxy_buffering off).`;
      fail(new ConnectionError("no_stream", text));
    }
  }

  async function run(mine: AbortController): Promise<void> {
    let error: unknown = "the stream ended";
    try {
      const { signal } = mine;
      const { body } = await http.send(`/v1/events?${query()}`, "event-stream", { signal });
      const reader = body!.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>).getReader();
      const read = blockReader(
        (block) => {
          if (attempt !== mine) return;
          if (block.event === "subscribed") {
            isOpen = true;
            failures = 0;
          }
          onBlock(block);
        },
        (ms) => (base = Math.max(ms, RETRY_MS_MIN)),
      );
      for (let part; !(part = await reader.read()).done; ) {
        read(part.value);
        if (isOpen) due = now() + silenceTimeout;
      }
    } catch (found) {
      error = found;
    }
    if (attempt === mine) fail(broken(url, error));
  }

  function fail(error: ReplBrokerError): void {
    stop();
    if (!isTemporary(error) && error.status !== 401) return lost(error, 0);
    http.leave(url);
    due = now() + Math.max(error.retryAfter, jitter(failures++ / http.urls.length, base));
    look();
    lost(error, failures);
  }

  function wake(certain?: boolean): void {
    if (certain || !attempt) start();
    else look();
  }

  return { isOpen: () => isOpen, start, stop, wake, look };
}
