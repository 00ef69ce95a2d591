// Publishing retries safely, and gives up in time; so do the other calls.

import { expect, test, vi } from "vitest";
import { ConnectionError, ProblemError } from "../src/index.js";
import { type Asked, answering, asked, json, open, pass, problem } from "./script.js";

const RECEIPT = { id: "0000000a-1", topic: "t", time: "2026-01-01T00:00:00.000Z" };
const kept = (): Response => json(RECEIPT, 201);
const keys = (): Set<string | null> => new Set(asked.map(({ headers }) => headers.get("Idempotency-Key")));

/** Answers one after the other; the last one again and again. */
function inTurn(...answers: ((asked: Asked) => Response | Promise<Response>)[]): void {
  let count = 0;
  answering((request) => (answers[Math.min(count++, answers.length - 1)] as (typeof answers)[0])(request));
}

const refused = (): Promise<never> => Promise.reject(new TypeError("fetch failed"));

/** What a promise has come to so far. */
async function outcome<T>(promise: Promise<T>, ms: number): Promise<T | "pending"> {
  let found: { value: T } | { error: unknown } | undefined;
  promise.then(
    (value) => (found = { value }),
    (error: unknown) => (found = { error }),
  );
  await pass(ms);
  if (!found) return "pending";
  if ("error" in found) throw found.error;
  return found.value;
}

test.each([
  ["503", () => problem(503, "no_leader", { "Retry-After": "1" })],
  ["504, when the outcome is unknown", () => problem(504, "outcome_unknown")],
  ["429", () => problem(429, "too_many_connections", { "Retry-After": "1" })],
  ["500", () => problem(500, "internal_error")],
  ["a connection that breaks", refused],
  ["a proxy's page", () => new Response("<html>Bad gateway", { status: 502, headers: { "Content-Type": "text/html" } })],
  ["an answer that is cut off", () => new Response('{"id"', { status: 201, headers: { "Content-Type": "application/json" } })],
])("a publish is repeated under its key after %s", async (_, failure) => {
  inTurn(failure, failure, kept);
  const { client } = open();
  expect(await outcome(client.publish("t", { a: 1 }), 20_000)).toEqual(RECEIPT);
  expect(asked.length).toBe(3);
  expect([...keys()]).toEqual([expect.stringMatching(/^[!-~]{10,255}$/)]);
  expect(new Set(asked.map(({ body }) => body))).toEqual(new Set(['{"a":1}']));
});

test("each publish has a key of its own, unless one is given", async () => {
  answering(kept);
  const { client } = open();
  await outcome(client.publish("t", 1), 0);
  await outcome(client.publish("t", 1), 0);
  await outcome(client.publish("t", 1, { idempotencyKey: "mine" }), 0);
  expect(keys().size).toBe(3);
  expect(keys()).toContain("mine");
});

test("another node is asked at once, and stays the one that is asked", async () => {
  answering(({ url }) => (url.hostname === "a.test" ? refused() : kept()));
  const { client } = open({ urls: ["http://a.test", "http://b.test/under/"] });
  expect(await outcome(client.publish("t", 1), 0)).toEqual(RECEIPT);
  expect(await outcome(client.publish("t", 2), 0)).toEqual(RECEIPT);
  expect(asked.map(({ url }) => url.href)).toEqual([
    "http://a.test/v1/topics/t/messages",
    ...Array(2).fill("http://b.test/under/v1/topics/t/messages"),
  ]);
});

test("Retry-After is heeded", async () => {
  inTurn(() => problem(503, "no_leader", { "Retry-After": "7" }), kept);
  const { client } = open();
  const receipt = client.publish("t", 1);
  expect(await outcome(receipt, 6900)).toBe("pending");
  expect(asked.length).toBe(1);
  expect(await outcome(receipt, 200)).toEqual(RECEIPT);
});

test("Retry-After of days is heeded for half a minute", async () => {
  inTurn(() => problem(503, "no_leader", { "Retry-After": "9999999" }), kept);
  const { client } = open({ callTimeout: 60_000 });
  const receipt = client.publish("t", 1);
  expect(await outcome(receipt, 29_900)).toBe("pending");
  expect(asked.length).toBe(1);
  expect(await outcome(receipt, 200)).toEqual(RECEIPT);
});

test.each([400, 403, 404, 413, 415, 422])("a refusal with %d is final", async (status) => {
  answering(() => problem(status, "some_code"));
  const { client } = open();
  const error = await outcome(client.publish("t", 1), 0).catch((found) => found);
  expect(error).toBeInstanceOf(ProblemError);
  expect(error).toMatchObject({ status, code: "some_code", detail: "It is some_code.", message: "It is some_code." });
  expect(asked.length).toBe(1);
});

test("publishing while the network is away waits for it, and gives up in time", async () => {
  answering(refused);
  const { client } = open();
  const first = client.publish("t", 1);
  expect(await outcome(first, 10_000)).toBe("pending");
  answering(kept);
  expect(await outcome(first, 5000)).toEqual(RECEIPT);

  answering(refused);
  const began = performance.now();
  const error = await outcome(client.publish("t", 2), 31_000).catch((found) => found);
  expect(error).toBeInstanceOf(ConnectionError);
  expect(error.code).toBe("gave_up");
  expect(error.detail).toBe("Gave up after 30000 ms. The connection to http://a.test failed: TypeError: fetch failed");
  expect(error.cause).toMatchObject({ code: "unreachable" });
  expect(performance.now() - began).toBeLessThanOrEqual(31_000);
});

test("a wait that is longer than the time left is not begun", async () => {
  answering(() => problem(503, "no_leader", { "Retry-After": "60" }));
  const { client } = open();
  await expect(outcome(client.publish("t", 1), 0)).rejects.toMatchObject({
    code: "gave_up",
    detail: "Gave up after 30000 ms. It is no_leader.",
  });
});

/** AbortSignal.timeout by the time that tests have; it has a clock of its own otherwise. */
function fakeSignalTime(): void {
  vi.spyOn(AbortSignal, "timeout").mockImplementation((ms) => {
    const control = new AbortController();
    setTimeout(() => control.abort(new DOMException("the operation timed out", "TimeoutError")), ms);
    return control.signal;
  });
}

test("a node that takes the request and never answers is left for another", async () => {
  fakeSignalTime();
  answering(({ url }) => (url.hostname === "a.test" ? new Promise(() => {}) : kept()));
  const { client } = open({ urls: ["http://a.test", "http://b.test"] });
  const receipt = client.publish("t", 1);
  expect(await outcome(receipt, 9900)).toBe("pending");
  expect(await outcome(receipt, 200)).toEqual(RECEIPT);

  const { client: other } = open({ callTimeout: 12_345 });
  const never = other.publish("t", 1);
  await expect(outcome(never, 13_000)).rejects.toMatchObject({ code: "gave_up", detail: expect.stringContaining("timed out") });
});

test("the time that an attempt may take is one that AbortSignal.timeout takes", async () => {
  vi.useRealTimers();
  answering(kept);
  const { client } = open({ callTimeout: 0.5 });
  expect(await client.publish("t", 1)).toEqual(RECEIPT);
});

test("an abort ends a call at once: a request, and a wait between two", async () => {
  answering(() => new Promise(() => {}));
  const { client } = open();
  for (const next of [() => new Promise<Response>(() => {}), refused]) {
    answering(next);
    const control = new AbortController();
    const receipt = client.publish("t", 1, { signal: control.signal });
    expect(await outcome(receipt, 10)).toBe("pending");
    control.abort(new Error("enough"));
    await expect(outcome(receipt, 0)).rejects.toThrow("enough");
    const before = asked.length;
    await pass(20_000);
    expect(asked.length).toBe(before);
  }
  await expect(outcome(client.history("t", { signal: AbortSignal.abort(new Error("before")) }), 0)).rejects.toThrow("before");
});

test("a fresh token is got on 401, once, for all calls that wait for one", async () => {
  let count = 0;
  answering(({ headers }) => (headers.get("Authorization") === "Bearer 2" ? kept() : problem(401, "unauthenticated")));
  const { client } = open({ token: async () => `${++count}` });
  expect(await outcome(client.publish("t", 1), 0)).toEqual(RECEIPT);
  expect(count).toBe(2);
  expect(await outcome(client.publish("t", 1), 0)).toEqual(RECEIPT);
  expect(count).toBe(2);
});

test("a fresh token is asked for once, however many calls are refused, and whenever they hear of it", async () => {
  let count = 0;
  let late = 0;
  answering(async ({ headers }) => {
    if (headers.get("Authorization") === "Bearer 2") return kept();
    const ms = 10 * ++late;
    await new Promise((resolve) => setTimeout(resolve, ms));
    return problem(401, "unauthenticated");
  });
  const { client } = open({ token: async () => `${++count}` });
  const all = Promise.all([...Array(20)].map((_, number) => client.publish("t", number)));
  expect(await outcome(all, 300)).toEqual(Array(20).fill(RECEIPT));
  expect([asked.length, count]).toEqual([40, 2]);
});

test("a token that never comes is asked for again, and said to be what is missing", async () => {
  fakeSignalTime();
  answering(kept);
  let count = 0;
  const { client } = open({ token: () => (count++ ? "good" : new Promise<string>(() => {})) });
  const receipt = client.publish("t", 1);
  expect(await outcome(receipt, 9900)).toBe("pending");
  expect(await outcome(receipt, 1000)).toEqual(RECEIPT);
  expect(asked.map(({ headers }) => headers.get("Authorization"))).toEqual(["Bearer good"]);

  const { client: never } = open({ token: () => new Promise<string>(() => {}) });
  await expect(outcome(never.publish("t", 1), 45_000)).rejects.toMatchObject({
    code: "gave_up",
    detail: expect.stringContaining("no token comes"),
  });
});

test("a token that never comes holds up neither an abort nor the end of a call's time", async () => {
  fakeSignalTime();
  const { client } = open({ token: () => new Promise<string>(() => {}), callTimeout: 2000 });
  const control = new AbortController();
  const receipt = client.publish("t", 1, { signal: control.signal });
  expect(await outcome(receipt, 500)).toBe("pending");
  control.abort(new Error("enough"));
  await expect(outcome(receipt, 0)).rejects.toThrow("enough");
  await expect(outcome(client.publish("t", 1), 2100)).rejects.toMatchObject({ code: "gave_up" });
});

test("a page that shares its stream by its token begins all the same if that hangs at first", async () => {
  fakeSignalTime();
  vi.stubGlobal("navigator", { locks: { request: () => new Promise(() => {}) } });
  answering(() => new Promise(() => {}));
  let count = 0;
  const { client } = open({ shareTabs: true, token: () => (count++ ? "good" : new Promise<string>(() => {})) });
  client.subscribe("t", () => {});
  await pass(9900);
  expect(asked.length).toBe(0);
  await pass(100);
  await pass(2000);
  expect(asked.map(({ headers }) => headers.get("Authorization"))).toEqual(["Bearer good"]);
});

test("401 that stays is told", async () => {
  answering(() => problem(401, "unauthenticated"));
  const { client } = open({ token: "wrong" });
  await expect(outcome(client.publish("t", 1), 0)).rejects.toMatchObject({ status: 401, code: "unauthenticated" });
});

test("a publish that became a GET by a redirect did not happen, and is not said to have", async () => {
  let isRedirected = true;
  answering(() => (isRedirected ? json({ messages: [], next: null, gap: false }) : kept()));
  const { client } = open({ urls: "http://a.test/old" });
  const receipt = client.publish("t", 1);
  expect(await outcome(receipt, 1000)).toBe("pending");
  isRedirected = false;
  expect(await outcome(receipt, 4000)).toEqual(RECEIPT);
  isRedirected = true;
  for (const call of [() => client.publish("t", 1), () => client.topics.create("t")]) {
    await expect(outcome<unknown>(call(), 31_000)).rejects.toMatchObject({
      code: "gave_up",
      detail: expect.stringContaining("http://a.test/old is no broker: status 200, application/json."),
    });
  }
});

test("topics that match a filter are deleted by one call, which tells how many", async () => {
  answering(() => json({ count: 7 }));
  const { client } = open();
  expect(await outcome(client.topics.deleteMatching("jobs.*.done"), 0)).toBe(7);
  expect(asked.map(({ method, url }) => `${method} ${url.pathname}${url.search}`)).toEqual([
    "DELETE /v1/topics?match=jobs.*.done",
  ]);
  answering(() => problem(403, "forbidden"));
  await expect(outcome(client.topics.deleteMatching(">"), 0)).rejects.toMatchObject({ code: "forbidden" });
});

test("names and parameters are encoded, and what is not given is left out", async () => {
  answering(() => json({ messages: [], next: null, gap: false }));
  const { client } = open();
  await outcome(client.history("a/b?c", { after: "earliest", limit: 5 }), 0);
  await outcome(client.history("t"), 0);
  await outcome(client.topics.list({ match: "a.>" }), 0);
  expect(asked.map(({ url }) => url.pathname + url.search)).toEqual([
    "/v1/topics/a%2Fb%3Fc/messages?after=earliest&limit=5",
    "/v1/topics/t/messages",
    "/v1/topics?match=a.%3E",
  ]);
  expect(asked.every(({ headers }) => !headers.has("Content-Type"))).toBe(true);
});
