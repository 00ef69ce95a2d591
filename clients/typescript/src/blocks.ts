import { createParser } from "eventsource-parser";

/** A block of an event stream (WHATWG HTML 9.2): an event, or without one only a new cursor. */
export interface Block {
  /** The last event id as of this block. */
  id: string;
  event: string;
  data: string;
}

/**
 * Takes text as it arrives, cut anywhere, and gives the blocks in it.
 *
 * eventsource-parser is silent about a block without data, and the broker's heartbeats are such
 * blocks: their id is the cursor to come back with. It keeps that id for the next event, as the
 * standard has it; so behind each block it is given an empty event, which brings it out. Lines are
 * cut here since the parser takes a CR LF that is cut between the two for two.
 */
export function blockReader(onBlock: (block: Block) => void, onRetry: (ms: number) => void) {
  let id = "";
  let rest = "";
  let isAfterReturn = false;

  const { feed } = createParser((found) => {
    if (found.type !== "event") return onRetry(found.value);
    const before = id;
    id = found.id ?? id;
    if (found.data || id !== before) onBlock({ id, event: found.data && (found.event || "message"), data: found.data });
  });

  return (text: string): void => {
    const lines = (isAfterReturn ? text.replace(/^\n/, "") : text).split(/\r\n?|\n/);
    isAfterReturn = text.endsWith("\r");
    lines[0] = rest + lines[0];
    rest = lines.pop() as string;
    // The parser takes "retry: 5x" for 5; the standard has it ignored.
    for (const line of lines) if (!/^retry(?!: ?\d+$)/.test(line)) feed(line ? `${line}\n` : "\ndata\n\n");
  };
}
