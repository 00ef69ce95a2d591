// Event ids: `<epoch>-<seq>`, 8 hex digits of the cluster and a decimal number. To those who use
// the client they are opaque; the client itself must know which of two is the later one.

/** Where a stream is to begin: after an event id, at the earliest or at the latest message. */
export type Position = string;

/** Whether it is an event id, and not a word such as `latest`. */
export const isId = (text: string): boolean => /^\w{8}-\d+$/.test(text);

/** By how many `a` is later than `b`; NaN if that cannot be said, so that no comparison holds. */
export function distance(a: string, b: string): number {
  const [epoch, seq] = a.split("-") as [string, never];
  const [otherEpoch, otherSeq] = b.split("-") as [string, never];
  return epoch === otherEpoch ? seq - otherSeq : NaN;
}
