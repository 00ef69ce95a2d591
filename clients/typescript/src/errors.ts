/**
 * Everything that the client throws, rejects with or reports:
 *
 *     ReplBrokerError          code, status, detail
 *     ├── ProblemError         the broker said no, in its own words
 *     └── ConnectionError      no answer, or none of a broker
 *
 * The codes of the first itself: `gap`, messages are gone and nobody listens for that;
 * `handler_failed`, a function of yours threw `cause`, and the others were called all the same;
 * `malformed_event`.
 */
export class ReplBrokerError extends Error {
  constructor(
    /** Stable, for programs: one of the broker's codes, or one of the client's own. */
    readonly code: string,
    /** For people: what was wrong, and what to do. */
    readonly detail: string,
    /** The HTTP status of a problem; else 0. */
    readonly status = 0,
    cause?: unknown,
    /** How long the broker asks to wait, in ms. */
    readonly retryAfter = 0,
  ) {
    super(detail, { cause });
  }
}

/**
 * The broker refused: a problem of RFC 9457. `code`, `detail` and `status` are the broker's.
 */
export class ProblemError extends ReplBrokerError {}

/**
 * There was no answer, or not one of a broker. Its codes: `unreachable`, also for a connection
 * that breaks and for a token that cannot be had; `not_the_broker`; `no_stream`, nothing comes, for
 * instance since a proxy holds it back; `gave_up`, a call that was repeated until its time was over.
 */
export class ConnectionError extends ReplBrokerError {}

/** An error as it goes from tab to tab. */
export type ErrorText = Pick<ReplBrokerError, "code" | "detail" | "status">;

/** Only problems have a status. */
export const errorOf = ({ code, detail, status }: ErrorText): ReplBrokerError =>
  new (status ? ProblemError : ConnectionError)(code, detail, status);
