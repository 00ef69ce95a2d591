// The chat's queue (examples/chat/outbox.js), with the built client.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
// @ts-expect-error It has no types.
import { bundle } from "../scripts/build.mjs";
import type { connect } from "../src/index.js";
import { answering, asked, json, pass, problem } from "./script.js";

const OUTBOX = join(import.meta.dirname, "../../../examples/chat/outbox.js");
const moduleOf = (code: string): string => `data:text/javascript,${encodeURIComponent(code)}`;

test("what the broker puts off is sent again after a pause, or at once when it is back", async () => {
  const client = moduleOf(await bundle());
  const code = readFileSync(OUTBOX, "utf8").replace(`"../client.js"`, JSON.stringify(client));
  const { Outbox } = await import(/* @vite-ignore */ moduleOf(code));
  const { publish } = ((await import(/* @vite-ignore */ client)).connect as typeof connect)({ urls: "http://a.test" });
  const outbox = new Outbox({
    storage: { getItem: () => null, setItem: () => {} },
    changed: () => {},
    publish: ({ topic, data, uuid }: any, signal: AbortSignal) => publish(topic, data, { idempotencyKey: uuid, signal }),
  });
  const later = (): Response => problem(429, "rate_limited", { "Retry-After": "60" }); // longer than a call goes on
  answering(() => (asked.length < 20 ? later() : new Promise(() => {})));
  outbox.add("chat.lobby", { text: "hi" });
  await pass(1900);
  expect(asked.length).toBe(1);
  await pass(200);
  expect(asked.length).toBe(2);
  outbox.hurry();
  await pass();
  expect(asked.length).toBe(3);
  answering(() => json({ id: "0000000a-1", topic: "chat.lobby", time: "" }, 201));
  outbox.add("chat.lobby", { text: "and this" });
  outbox.hurry();
  await pass();
  expect(outbox.items.map(({ state, data }: any) => [state, data.text])).toEqual([
    ["kept", "hi"],
    ["kept", "and this"],
  ]);
  expect(new Set(asked.map(({ headers }) => headers.get("Idempotency-Key"))).size).toBe(2);
});
