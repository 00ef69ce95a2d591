// Every rule of WHATWG HTML 9.2.5 and 9.2.6, through the client, however the bytes are cut.
//
// A reader written from the standard's words (here) and the client are given the same bytes. They
// must hand over the same messages and come back with the same last event id.

import fc from "fast-check";
import { expect, test } from "vitest";
import { answering, asked, Body, closeAll, open, pass } from "./script.js";

/** What the standard makes of a stream: messages, and the last event id when it ends. */
function standard(bytes: Uint8Array): { seen: unknown[]; id: string; retry: number | undefined } {
  let text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  if (text.startsWith("\uFEFF")) text = text.slice(1); // one leading BOM is stripped
  const lines = text.split(/\r\n|\n|\r/);
  lines.pop(); // a last line without an end: the block it is in is discarded
  const seen: unknown[] = [];
  let [data, type, buffer, id] = ["", "", "", ""];
  let retry: number | undefined;
  for (const line of lines) {
    const colon = line.indexOf(":");
    if (line === "") {
      id = buffer;
      if (data && (type || "message") === "message") seen.push(JSON.parse(data.replace(/\n$/, "")).data);
      [data, type] = ["", ""];
    } else if (colon !== 0) {
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "data") data += `${value}\n`;
      if (field === "event") type = value;
      if (field === "id" && !value.includes("\0")) buffer = value;
      if (field === "retry" && /^[0-9]+$/.test(value)) retry = Number(value);
    }
  }
  return { seen, id, retry };
}

const ids = fc.integer({ min: 2, max: 9 });
let seq = 10;
const next = (): string => `0000000a-${seq++}`;

/** A message's JSON, over one or several data lines: white space may be a line break. */
const message = fc
  .tuple(fc.jsonValue(), fc.boolean(), fc.constantFrom("data: ", "data:"))
  .map(([data, isLong, prefix]) => {
    const text = JSON.stringify({ topic: "t", data: data === -0 || Object.is(data, -0) ? 0 : data }, null, isLong ? 1 : 0);
    return text.split("\n").map((line) => prefix + line);
  });

const noise = fc.constantFrom(
  ...[":", ": a comment", ":comment:with:colons", "unknown", "unknown: field", "DATA: no", "datax: 1", " data: no"],
  ...["retry", "retry:", "retry: x", "retry: 5x", "retry:  7", "retry: 1500", "retry:3000", "id: bad\0id", "event: ", "event"],
);

/** One block: an id if it has one, noise, and data if it has any. The blank line is added later. */
const block = fc.oneof(
  { weight: 4, arbitrary: fc.tuple(fc.constant("id: "), message) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("id:"), message) },
  { weight: 2, arbitrary: fc.tuple(fc.constant("id: "), fc.constant(["event: heartbeat", "data: {}"])) },
  { weight: 1, arbitrary: fc.tuple(fc.constant(""), fc.constant([])) }, // nothing but noise
  { weight: 1, arbitrary: fc.tuple(fc.constant(""), fc.constant(["event: goodbye", "data: {}"])) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("id: "), message.map((lines) => ["event: message", ...lines])) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("id: "), message.map((lines) => ["event: other", ...lines])) },
);

const stream = fc
  .record({
    bom: fc.boolean(),
    blocks: fc.array(fc.tuple(block, fc.array(noise, { maxLength: 3 }), ids), { maxLength: 8 }),
    rest: fc.oneof(fc.constant(""), fc.constant("id: 0000000a-99"), fc.constant("id: 0000000a-99\ndata: {\"topic\":\"t\",\"data\":1}\n")),
    ends: fc.array(fc.constantFrom("\n", "\r\n", "\r"), { minLength: 1 }),
    cuts: fc.array(fc.nat(), { maxLength: 30 }),
  })
  .map(({ bom, blocks, rest, ends, cuts }) => {
    let count = 0;
    let before = "";
    // CR and LF around an empty line would be one end, and no line.
    const end = (line: string): string => {
      const found = ends[count++ % ends.length] as string;
      return (before = line === "" && before === "\r" && found === "\n" ? "\r" : found);
    };
    const text = blocks
      .map(([[prefix, lines], around]) => {
        const own = prefix ? [prefix + next()] : [];
        return [...own, ...around, ...lines, ""].map((line) => line + end(line)).join("");
      })
      .join("");
    const bytes = new TextEncoder().encode((bom ? "\uFEFF" : "") + text + rest);
    const places = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
    return { bytes, places };
  });

test("the client reads a stream as the standard has it, cut anywhere", async () => {
  await fc.assert(
    fc.asyncProperty(stream, async ({ bytes, places }) => {
      const bodies: Body[] = [];
      answering(({ signal }) => {
        const body = new Body(signal);
        bodies.push(body);
        return body.response;
      });
      closeAll();
      const { client, errors } = open();
      const seen: unknown[] = [];
      const subscription = client.subscribe("t", ({ data }) => seen.push(data), { after: "0000000a-1" });
      await pass();
      const body = bodies[0] as Body;
      [0, ...places].forEach((place, index) => {
        body.enqueue(bytes.slice(place, places[index] ?? bytes.length));
      });
      await body.end();
      const expected = standard(bytes);
      expect(seen).toEqual(expected.seen);
      expect(errors).toEqual([expect.objectContaining({ code: "unreachable" })]); // it has ended
      expect(subscription.cursor).toBe(expected.id || "0000000a-1");
      asked.length = 0;
      await pass((expected.retry ?? 2000) + 1);
      expect(asked[0]?.url.searchParams.get("after")).toBe(expected.id || "0000000a-1");
    }),
    { numRuns: 200 },
  );
});

test("an id that is empty does not make the client forget where it was", async () => {
  // The standard has it reset the last event id. Then what follows would be lost in silence.
  const bodies: Body[] = [];
  answering(({ signal }) => {
    bodies.push(new Body(signal));
    return (bodies.at(-1) as Body).response;
  });
  const { client } = open();
  const subscription = client.subscribe("t", () => {});
  await pass();
  await bodies[0]?.begin("0000000a-5");
  await bodies[0]?.send("id\n\n");
  await bodies[0]?.end();
  await pass(2000);
  expect(subscription.cursor).toBe("0000000a-5");
  expect(asked.at(-1)?.url.searchParams.get("after")).toBe("0000000a-5");
});

test("characters of several bytes may be cut, and others than UTF-8 do no harm", async () => {
  const bodies: Body[] = [];
  answering(({ signal }) => {
    bodies.push(new Body(signal));
    return (bodies.at(-1) as Body).response;
  });
  const { client, errors } = open();
  const seen: unknown[] = [];
  client.subscribe("t", ({ data }) => seen.push(data));
  await pass();
  await bodies[0]?.begin();
  for (const byte of new TextEncoder().encode('id: 0000000a-2\ndata: {"topic":"t","data":"é€🎉"}\n\n')) {
    await bodies[0]?.send(Uint8Array.of(byte));
  }
  await bodies[0]?.send(Uint8Array.of(0xff, 0xfe, 10, 10));
  await bodies[0]?.message("0000000a-3", "fine");
  expect([seen, errors]).toEqual([["é€🎉", "fine"], []]);
});
