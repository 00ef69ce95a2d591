import type { Http } from "./http.js";
import { topicPath } from "./topics.js";
import type { Receipt } from "./types.js";

/** How to publish. */
export interface PublishOptions {
  /**
   * Makes a retry safe: what is published again under the same key is kept once. The client makes
   * one for each call, and uses it for its own retries. Give one to go on after a call has failed,
   * or after a reload.
   */
  idempotencyKey?: string | undefined;
  /** Stop trying. The message may be kept all the same. */
  signal?: AbortSignal | undefined;
}

export const publish = ({ call }: Http, topic: string, data: unknown, options: PublishOptions): Promise<Receipt> =>
  call("POST", `${topicPath(topic)}/messages`, options.signal, data, options.idempotencyKey);
