// What the build makes of the sources: tabs with different builds understand each other, and the
// parser does the same without the parts that are left out.

import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
// @ts-expect-error It has no types.
import { bundle } from "../scripts/build.mjs";
import { blockReader } from "../src/blocks.js";
import type { Client, connect } from "../src/index.js";
import { answering, Body, pass } from "./script.js";

const clients: Client[] = [];

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
});

/** The module that the build makes of `entry`. */
async function built(entry?: string): Promise<any> {
  const code = `${await bundle(entry)}// ${Math.random()}`;
  return await import(/* @vite-ignore */ `data:text/javascript,${encodeURIComponent(code)}`);
}

/** A client of this build, what it says to the other tabs, and what has it hear one. */
async function tab(entry: string | undefined, isHolder: boolean) {
  const said: any[] = [];
  let hear = (_: { data: unknown }): void => {};
  class Channel {
    set onmessage(listener: typeof hear) {
      hear = listener;
    }
    postMessage(talk: unknown): void {
      said.push(structuredClone(talk));
    }
    close(): void {}
  }
  let isThere = false;
  const request = (name: string, _: object, got: () => unknown): unknown => {
    if (name.endsWith(" me") ? !isHolder : isThere) return new Promise(() => {}); // another tab has it
    isThere ||= !name.endsWith(" me");
    return Promise.resolve().then(got);
  };
  vi.stubGlobal("BroadcastChannel", Channel);
  vi.stubGlobal("navigator", { locks: { request } });
  const module = await built(entry);
  const client: Client = (module.connect as typeof connect)({ urls: "http://a.test", shareTabs: "me" });
  clients.push(client);
  await pass();
  return { client, said, hear: (data: unknown) => hear({ data }) };
}

test.each([
  ["this build", undefined],
  ["one with more in it", "tests/later.ts"],
])("what tabs say has the same names in %s", async (_, entry) => {
  const bodies: Body[] = [];
  answering(({ signal }) => {
    bodies.push(new Body(signal));
    return (bodies.at(-1) as Body).response;
  });

  const follower = await tab(entry, false);
  const { close } = follower.client.subscribe(["a", "b.*"], () => {}, { after: "earliest" });
  close();
  await pass(5000);
  const O = expect.any(String);
  const A = expect.any(Number);
  const wish = { e: expect.any(String), filters: ["a", "b.*"], after: "earliest" };
  for (const call of [{ n: "r", j: [wish] }, { n: "o", j: wish.e }, { n: "M" }]) {
    expect(follower.said).toContainEqual({ O, A, ...call });
  }

  const holder = await tab(entry, true);
  holder.hear({ O: "1-2", A: 1, n: "r", j: [{ e: "1-2-3", filters: ["a"], after: "earliest" }] });
  await pass();
  await (bodies[0] as Body).begin("0000000a-1");
  await (bodies[0] as Body).message("0000000a-2", 5, "a");
  const block = { id: "0000000a-2", event: "message", data: expect.stringContaining('"data":5') };
  for (const post of [{}, { B: { state: "live" } }, { B: { g: ["1-2-3"], P: block } }]) {
    expect(holder.said).toContainEqual({ O, A, ...post });
  }
});

test("without its unused parts the parser reads the same, however the text is cut", async () => {
  const { blockReader: builtReader } = await built("src/blocks.ts");
  const piece = fc.constantFrom(..."\r|\n|\r\n|\n\n|:| |data|data: x|event: y|id: 1|id|retry: 5|\uFEFF|\0|z".split("|"));
  fc.assert(
    fc.property(fc.array(fc.array(piece, { maxLength: 8 }).map((pieces) => pieces.join(""))), (parts) => {
      const read = (make: typeof blockReader): unknown[] => {
        const seen: unknown[] = [];
        const feed = make(
          (block) => seen.push(block),
          (ms) => seen.push(ms),
        );
        for (const part of ["data: first\n\n", ...parts, "\n\ndata: last\n\n"]) feed(part);
        return seen;
      };
      expect(read(builtReader)).toEqual(read(blockReader));
    }),
    { numRuns: 2000 },
  );
});
