import { createParser } from "eventsource-parser";

/** An event of a stream (WHATWG HTML 9.2) that has an id. */
export interface Block {
  id: string;
  event: string;
  data: string;
}

/**
 * Takes text as it arrives, cut anywhere, and gives the events in it that have an id: the cursor to
 * come back with. Those without one (`goodbye`, `token-expired`) tell how the stream ends, which
 * says nothing of where it is.
 *
 * Lines are cut here since the parser takes a CR LF that is cut between the two for two.
 */
export function blockReader(onBlock: (block: Block) => void, onRetry: (ms: number) => void) {
  let rest = "";
  let isAfterReturn = false;

  const { feed } = createParser((found) => {
    if (found.type !== "event") onRetry(found.value);
    else if (found.id) onBlock({ id: found.id, event: found.event || "message", data: found.data });
  });

  return (text: string): void => {
    const lines = (isAfterReturn ? text.replace(/^\n/, "") : text).split(/\r\n?|\n/);
    isAfterReturn = text.endsWith("\r");
    lines[0] = rest + lines[0];
    rest = lines.pop() as string;
    // The parser takes "retry: 5x" for 5; the standard has it ignored.
    for (const line of lines) if (!/^retry(?!: ?\d+$)/.test(line)) feed(`${line}\n`);
  };
}
