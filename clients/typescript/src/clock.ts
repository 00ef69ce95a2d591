// Time, as far as it is used: for waiting. It is monotonic, so a clock that is set makes no wait
// shorter or longer. While the machine sleeps it may stand still (stream.ts sees that).

export const now = (): number => performance.now();

/** No wait is longer, whoever asks for it. */
export const WAIT_MS_MAX = 30_000;

/** How long to wait before another try: anything up to a bound that doubles ("full jitter"). */
export const jitter = (attempt: number, base_ms: number): number =>
  Math.random() * Math.min(WAIT_MS_MAX, base_ms * 2 ** attempt);

/** Until `ms` have passed, or `signal` aborts. */
export const pause = (ms: number, signal?: AbortSignal): Promise<unknown> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
    signal?.addEventListener("abort", resolve);
  });
