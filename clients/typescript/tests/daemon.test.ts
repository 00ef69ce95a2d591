import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import {
  type Client,
  type ClientOptions,
  connect,
  type Gap,
  type HistoryPage,
  type Message,
  ProblemError,
  ReplBrokerError,
  type SubscribeOptions,
} from "../src/index.js";
import { Broker, until } from "./broker.js";

let broker: Broker;
const clients: Client[] = [];
const errors: unknown[] = [];

beforeAll(async () => {
  broker = await Broker.start({ limits_heartbeat_seconds: 1 });
});
afterAll(() => broker.remove());
afterEach(() => {
  for (const client of clients.splice(0)) client.close();
  expect(errors.splice(0)).toEqual([]);
});

function open(options: Partial<ClientOptions> = {}): Client {
  const client = connect({ urls: broker.url, ...options });
  client.on("error", (error) => errors.push(error));
  clients.push(client);
  return client;
}

/** A subscription that writes down the data of what it gets. */
async function follow(client: Client, filters: string | string[], options: SubscribeOptions = {}) {
  const seen: unknown[] = [];
  const subscription = client.subscribe(filters, ({ data }) => seen.push(data), options);
  await subscription.ready;
  return { seen, subscription };
}

const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, index) => from + index);

// --- messages ---

test("what is published is received, with its types", async () => {
  const client = open();
  interface Order {
    order: number;
  }
  const got = new Promise<Message<Order>>((resolve) => client.subscribe<Order>("orders.*", resolve));
  await until(() => client.state === "live", "live");
  const receipt = await client.publish("orders.eu", { order: 42 });
  expect(await got).toEqual({ ...receipt, data: { order: 42 } });
});

test("filters that are added and removed while messages arrive lose and repeat nothing", async () => {
  const client = open();
  const first = await follow(client, "turn.a");
  let isDone = false;
  let count = 0;
  const publishing = (async () => {
    for (; !isDone; count += 5) await broker.publish("turn.a", ...range(count, count + 5));
  })();
  const others = [];
  for (const name of ["b", "c", "d", "e"]) {
    const at = first.seen.length;
    others.push(await follow(client, `turn.${name}`));
    await until(() => first.seen.length > at + 20, "more messages");
  }
  for (const other of others.splice(0)) {
    other.subscription.close();
    const at = first.seen.length;
    await until(() => first.seen.length > at + 20, "more messages");
  }
  isDone = true;
  await publishing;
  await until(() => first.seen.length >= count, "the rest");
  expect(first.seen).toEqual(range(0, count));
  await broker.waitStreams(1);
});

test("each subscription begins where it asks to, beside others that are further", async () => {
  const client = open();
  const ids = [];
  for (const number of range(0, 6)) ids.push(await broker.publish("begin.here", number));
  const other = await follow(client, "begin.other");
  const [earliest, middle, latest] = await Promise.all([
    follow(client, "begin.here", { after: "earliest" }),
    follow(client, "begin.*", { after: ids[2] }),
    follow(client, "begin.here"),
  ]);
  const last = await broker.publish("begin.here", 6);
  await broker.publish("begin.other", "one");
  await until(() => other.seen.length === 1 && middle.seen.length === 5, "all");
  await until(() => earliest.seen.length === 7 && latest.seen.length === 1, "all");
  expect([earliest.seen, middle.seen, latest.seen, other.seen]).toEqual([
    range(0, 7),
    [3, 4, 5, 6, "one"],
    [6],
    ["one"],
  ]);
  expect(latest.subscription.cursor && latest.subscription.cursor >= last).toBe(true);
  await broker.waitStreams(1); // once a heartbeat has told each how far it is
  await broker.publish("begin.here", 7);
  await until(() => [earliest, middle, latest].every(({ seen }) => seen.at(-1) === 7), "all of them");
  expect(earliest.seen).toEqual(range(0, 8));
});

test("one that begins at the latest message gets nothing that was published before", async () => {
  const client = open();
  const quiet = await follow(client, "late.quiet"); // whose cursor stays behind
  await broker.publish("late.busy", ...range(0, 50));
  const { seen } = await follow(client, "late.busy");
  await broker.publish("late.busy", 50);
  await broker.publish("late.quiet", "x");
  await until(() => seen.length > 0 && quiet.seen.length > 0, "messages");
  expect(seen).toEqual([50]);
});

test("subscriptions with the same topics all get each message once, in one order", async () => {
  const client = open();
  const order: string[] = [];
  for (const name of ["one", "two"]) {
    const { ready } = client.subscribe(["same.a", "same.*", "same.>"], ({ data }) => order.push(`${name} ${data}`));
    await ready;
  }
  await broker.publish("same.a", 1, 2);
  await until(() => order.length === 4, "four");
  const of = (name: string): string[] => order.filter((each) => each.startsWith(name));
  expect([of("one"), of("two")]).toEqual([
    ["one 1", "one 2"],
    ["two 1", "two 2"],
  ]);
});

test("a subscription ends by close, by its signal, and with the client", async () => {
  const client = open();
  const control = new AbortController();
  const closed = await follow(client, "end.a");
  const aborted = await follow(client, "end.a", { signal: control.signal });
  const left = await follow(client, "end.a");
  closed.subscription.close();
  control.abort();
  await broker.publish("end.a", 1);
  await until(() => left.seen.length === 1, "a message");
  client.close();
  expect(client.state).toBe("closed");
  await broker.publish("end.a", 2);
  await broker.waitStreams(0);
  expect([closed.seen, aborted.seen, left.seen]).toEqual([[], [], [1]]);
  expect(() => client.subscribe("end.a", () => {})).toThrow("abort");
});

test("when the last subscription is closed the stream is, too", async () => {
  const client = open();
  const { subscription } = await follow(client, "idle");
  subscription.close();
  await broker.waitStreams(0);
  expect(client.state).toBe("idle");
  await follow(client, "idle");
  expect(client.state).toBe("live");
});

test("an event in a message keeps no order of its own: topics are in one order", async () => {
  const client = open();
  const { seen } = await follow(client, ["order.a", "order.b"]);
  const expected = [];
  for (const number of range(0, 20)) {
    await broker.publish(number % 3 ? "order.a" : "order.b", number);
    expected.push(number);
  }
  await until(() => seen.length === 20, "all");
  expect(seen).toEqual(expected);
});

// --- loops ---

test("a loop reads messages, and ends with its signal", async () => {
  const client = open();
  await broker.publish("loop.a", ...range(0, 5));
  const control = new AbortController();
  const seen = [];
  for await (const { data } of client.messages<number>("loop.a", { after: "earliest", signal: control.signal })) {
    seen.push(data);
    if (data === 4) control.abort();
  }
  expect(seen).toEqual(range(0, 5));
  await broker.waitStreams(0);
});

test("a loop that is left closes its subscription", async () => {
  const client = open();
  await broker.publish("loop.b", 1);
  for await (const { data } of client.messages("loop.b", { after: "earliest" })) if (data) break;
  await broker.waitStreams(0);
});

test("a slow loop keeps no more than it may, delays nobody, and gets everything", async () => {
  const client = open();
  await broker.publish("loop.slow", ...range(0, 2500));
  const seen: number[] = [];
  const other = await follow(client, "loop.other");
  const control = new AbortController();
  for await (const { data } of client.messages<number>("loop.slow", { after: "earliest", signal: control.signal })) {
    if (!seen.length) {
      await broker.publish("loop.other", "meanwhile");
      await until(() => other.seen.length === 1, "the other's message");
    }
    if (seen.push(data) === 2500) control.abort();
  }
  expect(seen).toEqual(range(0, 2500));
});

test("a loop over a filter that is refused throws the broker's words", async () => {
  const loop = open().messages("not..valid");
  await expect(loop.next()).rejects.toMatchObject({ code: "invalid_filter", status: 400 });
});

// --- publishing, history, topics ---

test("publishing under the same key again is the same message", async () => {
  const client = open();
  const options = { idempotencyKey: "client-test-1" };
  const first = await client.publish("keys", { a: 1 }, options);
  expect(await client.publish("keys", { a: 1 }, options)).toEqual(first);
  expect((await client.history("keys")).messages).toEqual([{ ...first, data: { a: 1 } }]);
  await expect(client.publish("keys", { a: 2 }, options)).rejects.toMatchObject({ code: "idempotency_key_reused" });
});

test("what is refused is refused in the broker's words, at once", async () => {
  const error = await open()
    .publish("not a topic", 1)
    .catch((found) => found);
  expect(error).toBeInstanceOf(ProblemError);
  expect(error).toBeInstanceOf(ReplBrokerError);
  expect(error).toMatchObject({ code: "invalid_topic", status: 400, message: error.detail });
  expect(error.detail).toContain("not a topic");
  await expect(open().publish("undefined", undefined)).rejects.toMatchObject({ code: "invalid_json" });
  const circle: unknown[] = [];
  circle.push(circle);
  await expect(open().publish("circle", circle)).rejects.toThrow(TypeError);
});

test("history is read page by page", async () => {
  const client = open();
  await broker.publish("history", ...range(0, 25));
  const seen: number[] = [];
  for (let after: string | null = "earliest"; after; ) {
    const page: HistoryPage<number> = await client.history("history", { after, limit: 10 });
    seen.push(...page.messages.map(({ data }) => data));
    expect(page.gap).toBe(false);
    after = page.next;
  }
  expect(seen).toEqual(range(0, 25));
});

test("topics are created, changed, listed, shown and deleted", async () => {
  const { topics } = open();
  const made = await topics.create("topics.a", { retention: { messages: 7 } });
  expect(made).toMatchObject({ name: "topics.a", retention: { messages: 7 }, messages: 0 });
  await expect(topics.create("topics.a")).rejects.toMatchObject({ code: "topic_exists", status: 409 });
  expect(await topics.put("topics.a", { retention: { messages: 8 } })).toMatchObject({ retention: { messages: 8 } });
  expect(await topics.put("topics.b")).toMatchObject({ name: "topics.b" });
  const page = await topics.list({ match: "topics.*", limit: 1 });
  expect(page.topics.map(({ name }) => name)).toEqual(["topics.a"]);
  const rest = await topics.list({ match: "topics.*", after: page.next as string });
  expect(rest).toMatchObject({ topics: [{ name: "topics.b" }], next: null });
  await topics.delete("topics.a");
  await expect(topics.get("topics.a")).rejects.toMatchObject({ code: "topic_not_found", status: 404 });
});

// --- gaps and deletions ---

test("a gap is told to the subscription and to the client, and messages go on behind it", async () => {
  const client = open();
  await client.topics.put("gap.a", { retention: { messages: 3 } });
  const first = await broker.publish("gap.a", 0);
  await broker.publish("gap.a", ...range(1, 10));
  const gaps: Gap[] = [];
  const all: Gap[] = [];
  client.on("gap", (gap) => all.push(gap));
  const { seen } = await follow(client, "gap.a", { after: first, onGap: (gap) => gaps.push(gap) });
  await until(() => seen.length === 3, "what is left");
  expect(seen).toEqual([7, 8, 9]);
  expect(gaps).toEqual([{ after: first, first_available: expect.any(String), reason: "retention" }]);
  expect(all).toEqual(gaps);
});

test("a gap that nobody listens for is an error", async () => {
  const client = open();
  await client.topics.put("gap.b", { retention: { messages: 1 } });
  const first = await broker.publish("gap.b", 0);
  await broker.publish("gap.b", 1, 2);
  const { seen } = await follow(client, "gap.b", { after: first });
  await until(() => seen.length === 1, "what is left");
  expect(errors.splice(0)).toEqual([expect.objectContaining({ code: "gap" })]);
});

test("beside a quiet subscription, one to a topic that keeps one message is told of no gap", async () => {
  const client = open();
  await client.topics.put("gap.last", { retention: { messages: 1 } });
  await follow(client, "gap.quiet");
  await broker.publish("gap.last", ...range(0, 20));
  const latest = await follow(client, "gap.last");
  const earliest = await follow(client, "gap.last", { after: "earliest" });
  await until(() => earliest.seen.length === 1, "the last value");
  await broker.publish("gap.last", 20);
  await until(() => latest.seen.length === 1 && earliest.seen.length === 2, "the next value");
  await broker.waitStreams(1);
  expect([latest.seen, earliest.seen]).toEqual([[20], [19, 20]]);
});

test("a cursor of the future is told as a gap, and not waited for in silence", async () => {
  const client = open();
  const other = await follow(client, "ahead");
  const last = await broker.publish("ahead", 0);
  const [epoch, seq] = last.split("-");
  const gaps: Gap[] = [];
  const { seen } = await follow(client, "ahead", {
    after: `${epoch}-${Number(seq) + 1000}`,
    onGap: (gap) => gaps.push(gap),
  });
  await until(() => gaps.length === 1, "the gap");
  expect(gaps[0]).toMatchObject({ reason: "ahead" });
  await broker.publish("ahead", 1);
  await until(() => seen.length === 1 && other.seen.length === 2, "the next message");
});

test("a cursor of another cluster is told as a gap", async () => {
  const client = open();
  await broker.publish("epoch", 0, 1);
  const gaps: Gap[] = [];
  const { seen } = await follow(client, "epoch", { after: "00000000-7", onGap: (gap) => gaps.push(gap) });
  await until(() => seen.length === 2, "what there is");
  expect(gaps).toMatchObject([{ reason: "unknown_epoch" }]);
});

test("a topic that is deleted is told once, whatever is opened again meanwhile", async () => {
  const client = open();
  const told: unknown[] = [];
  client.on("topic-deleted", (deleted) => told.push(deleted));
  const { seen } = await follow(client, ["deleted.a", "deleted.b"]);
  await broker.publish("deleted.a", 1);
  await until(() => seen.length === 1, "the message");
  await client.topics.delete("deleted.a");
  await until(() => told.length === 1, "the deletion");
  await follow(client, "deleted.other"); // opens the stream again at the same position
  await broker.publish("deleted.a", 2);
  await until(() => seen.length === 2, "the next message");
  expect(told).toEqual([{ topic: "deleted.a" }]);
});

// --- what is refused ---

test("a filter that is refused fails its subscription alone, in the broker's words", async () => {
  const client = open();
  const failures: [string, unknown][] = [];
  const filters = ["refused.a", "refused..b", "refused.c", ">.refused", "refused.d"];
  const all = filters.map((filter) => {
    const seen: unknown[] = [];
    const onError = (error: unknown): void => void failures.push([filter, error]);
    return { seen, ...client.subscribe(filter, ({ data }) => seen.push(data), { onError }) };
  });
  await Promise.all(all.map(({ ready }) => ready));
  await until(() => failures.length === 2, "two refusals");
  expect(failures.map(([filter]) => filter).sort()).toEqual([">.refused", "refused..b"]);
  for (const [filter, error] of failures) {
    expect(error).toBeInstanceOf(ProblemError);
    expect(error).toMatchObject({ code: "invalid_filter", status: 400, detail: expect.stringContaining(filter) });
  }
  for (const name of ["a", "c", "d"]) await broker.publish(`refused.${name}`, name);
  await until(() => all.filter(({ seen }) => seen.length === 1).length === 3, "the others' messages");
  await broker.waitStreams(1);
});

test("a refusal that nobody listens for is an error", async () => {
  const client = open();
  await client.subscribe("refused", () => {}, { after: "not an id" }).ready;
  expect(errors.splice(0)).toMatchObject([{ code: "invalid_event_id", status: 400 }]);
  await until(() => client.state === "idle", "idleness");
});

test("one filter more than a stream may have is refused, and the others stay", async () => {
  const client = open();
  const many = range(0, 127).map((number) => `many.${number}`);
  const first = await follow(client, many);
  const second = await follow(client, "many.127");
  const failures: ReplBrokerError[] = [];
  const third = client.subscribe("many.128", () => {}, { onError: (error) => failures.push(error) });
  await third.ready;
  await until(() => failures.length === 1, "the refusal");
  expect(failures[0]?.detail).toContain("128");
  await broker.publish("many.126", 1);
  await broker.publish("many.127", 2);
  await until(() => first.seen.length === 1 && second.seen.length === 1, "the others' messages");
  await broker.waitStreams(1);
});

// --- handlers ---

test("a handler that throws, or rejects, is reported; the others are called all the same", async () => {
  const reported: Error[] = [];
  vi.spyOn(console, "error").mockImplementation((error) => reported.push(error));
  const client = open();
  client.subscribe("throws", () => {
    throw new Error("thrown");
  });
  client.subscribe("throws", async () => Promise.reject(new Error("rejected")));
  const { seen } = await follow(client, "throws");
  await until(() => client.state === "live", "live");
  await broker.publish("throws", 1, 2);
  await until(() => seen.length === 2 && reported.length === 4, "two messages and four errors");
  expect(reported.map(({ message }) => message).sort()).toEqual(["rejected", "rejected", "thrown", "thrown"]);
  vi.restoreAllMocks();
});

test("a handler may close its subscription, and open others", async () => {
  const client = open();
  const seen: unknown[] = [];
  const outer = client.subscribe("nested", ({ data }) => {
    seen.push(data);
    outer.close();
    client.subscribe("nested", ({ data }) => seen.push(`inner ${data}`), { after: "earliest" });
  });
  await outer.ready;
  await broker.publish("nested", 1, 2);
  await until(() => seen.length === 3, "what the inner one gets");
  expect(seen).toEqual([1, "inner 1", "inner 2"]);
});
