// The stream never silently stops: what it does when the broker, the network or a proxy misbehaves.

import fc from "fast-check";
import { expect, test, vi } from "vitest";
import { ConnectionError } from "../src/index.js";
import { answering, asked, Body, json, open, pass, problem } from "./script.js";

/** Answers streams with bodies that the test holds. */
function bodies(): Body[] {
  const found: Body[] = [];
  answering(({ signal }) => {
    const body = new Body(signal);
    found.push(body);
    return body.response;
  });
  return found;
}

const after = (): (string | null)[] => asked.map(({ url }) => url.searchParams.get("after"));
const hosts = (): string[] => asked.map(({ url }) => url.hostname);
const last = <T>(all: T[]): T => all.at(-1) as T;

test("a stream that ends is opened again where it was", async () => {
  const streams = bodies();
  const { client, states, errors } = open();
  const seen: unknown[] = [];
  client.subscribe("t", ({ data }) => seen.push(data));
  await pass();
  await last(streams).begin("0000000a-1");
  await last(streams).message("0000000a-2", "one");
  await last(streams).end();
  await pass(2000);
  expect(after()).toEqual(["latest", "0000000a-2"]);
  await last(streams).begin("0000000a-2");
  await last(streams).message("0000000a-3", "two");
  await last(streams).break();
  await pass(2000);
  expect(last(after())).toBe("0000000a-3");
  await last(streams).begin("0000000a-3");
  expect(seen).toEqual(["one", "two"]);
  expect(states.map(({ state }) => state)).toEqual([
    ...["connecting", "live", "reconnecting", "live", "reconnecting", "live"],
  ]);
  expect(states[2]?.error).toBeInstanceOf(ConnectionError);
  expect(errors).toEqual([]); // an outage is told by the state
});

test("a heartbeat moves the cursor, and no handler is called", async () => {
  const streams = bodies();
  const { client } = open();
  const seen: unknown[] = [];
  const subscription = client.subscribe("t", (message) => seen.push(message));
  await pass();
  await last(streams).begin("0000000a-1");
  await last(streams).heartbeat("0000000a-9");
  expect(subscription.cursor).toBe("0000000a-9");
  await last(streams).break();
  await pass(2000);
  expect(last(after())).toBe("0000000a-9");
  expect(seen).toEqual([]);
});

test("a node that shuts down is left at its word: no handler hears of it, and the cursor stays", async () => {
  const streams = bodies();
  const { client, errors } = open({ urls: ["http://a.test", "http://b.test"] });
  const seen: unknown[] = [];
  const subscription = client.subscribe("t", (message) => seen.push(message), { onGap: (gap) => seen.push(gap) });
  await pass();
  await last(streams).begin("0000000a-1");
  await last(streams).heartbeat("0000000a-9");
  await last(streams).goodbye(4000);
  expect([subscription.cursor, client.state]).toEqual(["0000000a-9", "reconnecting"]);
  await pass(1900);
  expect(asked.length).toBe(1);
  await pass(200); // half of what it named
  expect([hosts(), last(after())]).toEqual([["a.test", "b.test"], "0000000a-9"]);
  expect([seen, errors]).toEqual([[], []]);
});

test("a good-bye right after the beginning proves no cursor, and hides no gap of subscriptions that were joined", async () => {
  const streams = bodies();
  const { client } = open();
  const gaps: string[] = [];
  const one = client.subscribe("a", () => {}, { onGap: () => gaps.push("a") });
  await pass(100);
  await last(streams).begin("0000000a-5");
  const other = client.subscribe("b", () => {}, { onGap: () => gaps.push("b") });
  await pass(100);
  await last(streams).begin("0000000a-6"); // a lane of its own, which is level with the first
  await last(streams).heartbeat("0000000a-6");
  await pass(100);
  expect(last(asked).url.searchParams.getAll("topic")).toEqual(["a", "b"]); // they are joined
  await last(streams).begin("0000000a-5");
  await last(streams).goodbye();
  await pass(3000);
  await last(streams).begin("0000000a-5");
  await last(streams).send('id: 0000000a-6\nevent: gap\ndata: {"after":"0000000a-5","reason":"retention"}\n\n');
  await pass(100);
  expect(gaps).toEqual([]); // each is to hear of its own
  expect(asked.slice(-2).map(({ url }) => url.searchParams.getAll("topic"))).toEqual([["a"], ["b"]]);
  expect([one.cursor, other.cursor]).toEqual(["0000000a-5", "0000000a-6"]);
});

test("a stream that is silent for three heartbeats is dead; one with heartbeats is not", async () => {
  const streams = bodies();
  const { client, states } = open();
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  for (let beat = 2; beat < 12; beat++) {
    await pass(40_000);
    await last(streams).heartbeat(`0000000a-${beat}`);
  }
  expect(asked.length).toBe(1);
  await pass(44_000);
  expect(client.state).toBe("live");
  await pass(1000);
  expect(client.state).toBe("reconnecting");
  expect(last(states).error?.code).toBe("no_stream");
  expect(streams[0]?.isGivenUp).toBe(true);
  await pass(2000);
  expect(last(after())).toBe("0000000a-11");
});

test("bytes without an event keep a stream alive: a proxy's comments are no silence", async () => {
  const streams = bodies();
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  for (let count = 0; count < 5; count++) {
    await pass(40_000);
    await last(streams).send(": still there\n\n");
  }
  expect([asked.length, client.state]).toEqual([1, "live"]);
});

test("a proxy that buffers is named, with the remedy, and tried again", async () => {
  const streams = bodies();
  const { client, errors } = open();
  client.subscribe("t", () => {});
  await pass();
  await last(streams).send(": padding\n\n"); // bytes, but no event
  await pass(9000);
  expect(errors).toEqual([]);
  await pass(1000);
  expect(errors).toMatchObject([{ code: "no_stream", detail: expect.stringContaining("http://a.test") }]);
  expect(errors[0]?.detail).toContain("proxy_buffering off");
  await pass(2000);
  expect(asked.length).toBe(2);
  await last(streams).begin();
  expect(client.state).toBe("live");
});

test("a page that is not the broker is named, once, however often it is tried", async () => {
  answering(() => new Response("<html>", { headers: { "Content-Type": "text/html; charset=utf-8" } }));
  const { client, errors, states } = open({ urls: "http://a.test/shop/" });
  client.subscribe("t", () => {});
  await pass();
  await pass(60_000);
  expect(asked.length).toBeGreaterThan(4);
  expect(asked[0]?.url.pathname).toBe("/shop/v1/events");
  expect(errors).toMatchObject([{ code: "not_the_broker" }]);
  expect(errors[0]?.detail).toBe("http://a.test/shop is no broker: status 200, text/html; charset=utf-8.");
  expect(last(states)).toMatchObject({ state: "connecting", error: { code: "not_the_broker" } });
});

test("a broker that cannot be reached is an error once it is clear that no node can", async () => {
  answering(() => Promise.reject(new TypeError("fetch failed", { cause: new Error("connect ECONNREFUSED") })));
  const { client, errors } = open({ urls: ["http://a.test", "http://b.test"] });
  client.subscribe("t", () => {});
  await pass();
  expect([hosts(), errors]).toEqual([["a.test"], []]);
  await pass(2000);
  expect(hosts()).toEqual(["a.test", "b.test"]);
  expect(errors).toMatchObject([{ code: "unreachable", detail: expect.stringContaining("ECONNREFUSED") }]);
  await pass(600_000);
  expect(errors.length).toBe(1);
  expect(asked.length).toBeGreaterThan(20); // it goes on
});

test("a later subscription that does not come to be is an error, once, while the others go on", async () => {
  const streams: Body[] = [];
  answering(({ signal }) => {
    if (streams.some(({ isGivenUp }) => !isGivenUp)) return problem(429, "too_many_connections", { "Retry-After": "2" });
    streams.push(new Body(signal));
    return last(streams).response;
  });
  const { client, errors } = open();
  client.subscribe("a", () => {});
  await pass();
  await last(streams).begin();
  client.subscribe("b", () => {});
  await pass();
  expect(errors).toMatchObject([{ code: "too_many_connections", status: 429 }]);
  for (let beat = 2; beat < 30; beat++) {
    await last(streams).heartbeat(`0000000a-${beat}`);
    await pass(10_000);
  }
  expect(asked.length).toBeGreaterThan(10);
  expect([errors.length, client.state]).toEqual([1, "live"]);
});

test("an outage right after the beginning is told by the state alone, wherever it was to begin", async () => {
  const streams = bodies();
  const { client, errors } = open();
  client.subscribe("t", () => {}, { after: "0000000a-5" });
  await pass();
  await last(streams).begin("0000000a-5");
  answering(() => Promise.reject(new TypeError("down")));
  await last(streams).break();
  await pass(60_000);
  expect([client.state, errors]).toEqual(["reconnecting", []]);
});

test("after a failure the next node is asked", async () => {
  const streams: Body[] = [];
  answering(({ url, signal }) => {
    if (url.hostname === "b.test") return problem(503, "shutting_down", { "Retry-After": "1" });
    streams.push(new Body(signal));
    return last(streams).response;
  });
  const { client } = open({ urls: ["http://a.test", "http://b.test", "http://c.test"] });
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  await last(streams).break();
  await pass(10_000);
  expect(hosts()).toEqual(["a.test", "b.test", "c.test"]);
});

test("waits grow to half a minute, and are anything up to that", async () => {
  const random = vi.spyOn(Math, "random").mockReturnValue(0.999999);
  answering(() => Promise.reject(new TypeError("down")));
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  const times: number[] = [];
  for (let since = 0, count = 1; times.length < 7; since += 100) {
    if (asked.length > count) {
      times.push(since);
      [since, count] = [0, asked.length];
    }
    await vi.advanceTimersByTimeAsync(100);
  }
  expect(times).toEqual([2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000].map((ms) => expect.closeTo(ms, -3)));
  random.mockReturnValue(0.01);
  const before = asked.length;
  await pass(32_000); // once the present wait is over
  expect(asked.length).toBeGreaterThan(before + 1);
});

test("Retry-After is heeded where it is longer, as a number; a date is not, since clocks differ", async () => {
  let header = "20";
  answering(() => problem(503, "no_leader", { "Retry-After": header }));
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await pass(19_900);
  expect(asked.length).toBe(1);
  header = "Fri, 31 Dec 2999 23:59:59 GMT";
  await pass(200);
  expect(asked.length).toBe(2);
  await pass(4000);
  expect(asked.length).toBeGreaterThan(2);
});

test("Retry-After of days is heeded for half a minute", async () => {
  answering(() => problem(503, "no_leader", { "Retry-After": "9999999" }));
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await pass(29_900);
  expect(asked.length).toBe(1);
  await pass(200);
  expect(asked.length).toBe(2);
});

test("patience without end is no timer that runs out at once", async () => {
  const streams = bodies();
  const { client } = open({ silenceTimeout: Infinity });
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  const timers = vi.spyOn(globalThis, "setTimeout");
  await pass(300_000);
  expect(timers.mock.calls.length).toBeLessThan(15);
  expect([asked.length, client.state]).toEqual([1, "live"]);
});

test("retry: 0 does not have the broker asked without a pause", async () => {
  const streams = bodies();
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  for (let count = 1; count < 4; count++) {
    await last(streams).begin("0000000a-1", 0);
    await last(streams).end();
    await pass(45);
    expect(asked.length).toBe(count);
    await pass(10);
    expect(asked.length).toBe(count + 1);
  }
});

test("retry: of the broker is what waits begin with", async () => {
  vi.spyOn(Math, "random").mockReturnValue(0.999999);
  const streams = bodies();
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin("0000000a-1", 6000);
  await last(streams).end();
  await pass(5900);
  expect(asked.length).toBe(1);
  await pass(200);
  expect(asked.length).toBe(2);
});

test("a fresh token is got on 401, at once, and sent from then on", async () => {
  const tokens = ["old", "new", "never"];
  const streams: Body[] = [];
  answering(({ headers, signal }) => {
    if (headers.get("Authorization") !== "Bearer new") return problem(401, "unauthenticated");
    streams.push(new Body(signal));
    return last(streams).response;
  });
  const { client, errors } = open({ token: async () => tokens.shift() as string });
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  expect(asked.map(({ headers }) => headers.get("Authorization"))).toEqual(["Bearer old", "Bearer new"]);
  expect([client.state, errors, tokens]).toEqual(["live", [], ["never"]]);
});

test.each(["expired", "revoked"])("when the token is %s, another is got, and the cursor stays", async (reason) => {
  const tokens = ["old", "new"];
  const streams = bodies();
  const { client, errors } = open({ token: () => tokens.shift() as string });
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  await last(streams).message("0000000a-7", "seen");
  await last(streams).send(`event: token-expired\ndata: {"reason":"${reason}"}\n\n`);
  await last(streams).end();
  await pass(5000);
  await last(streams).begin("0000000a-7");
  expect(asked.map(({ headers }) => headers.get("Authorization"))).toEqual(["Bearer old", "Bearer new"]);
  expect(last(after())).toBe("0000000a-7");
  expect([client.state, errors]).toEqual(["live", []]);
});

test("a token that stays refused is an error, and tried again", async () => {
  answering(() => problem(401, "unauthenticated"));
  const { client, errors } = open({ token: "wrong" });
  client.subscribe("t", () => {});
  await pass();
  expect(errors).toMatchObject([{ code: "unauthenticated", status: 401 }]);
  await pass(10_000);
  expect(asked.length).toBeGreaterThan(3);
});

test("a token that cannot be had is asked for again", async () => {
  const streams = bodies();
  let count = 0;
  const token = (): string => {
    if (count++ < 2) throw new Error("no session");
    return "good";
  };
  const { client, errors } = open({ token });
  client.subscribe("t", () => {});
  await pass(10_000);
  await last(streams).begin();
  expect(asked.map(({ headers }) => headers.get("Authorization"))).toEqual(["Bearer good"]);
  expect(errors).toMatchObject([{ code: "unreachable", detail: expect.stringContaining("no session") }]);
});

// --- waking ---

class Page extends EventTarget {}

function page(): Page {
  const target = new Page();
  vi.stubGlobal("addEventListener", target.addEventListener.bind(target));
  return target;
}

test("the network's return ends waiting, and replaces a connection that may be dead", async () => {
  const target = page();
  vi.spyOn(Math, "random").mockReturnValue(0.999999);
  let isDown = true;
  const streams: Body[] = [];
  answering(({ signal }) => {
    if (isDown) return Promise.reject(new TypeError("offline"));
    streams.push(new Body(signal));
    return last(streams).response;
  });
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await pass(2100);
  expect(asked.length).toBe(2);
  isDown = false;
  target.dispatchEvent(new Event("online"));
  await pass();
  expect(asked.length).toBe(3);
  await last(streams).begin("0000000a-5");
  target.dispatchEvent(new Event("online"));
  await pass();
  expect(last(after())).toBe("0000000a-5");
  expect(streams[0]?.isGivenUp).toBe(true);
});

test("a publish that is answered ends waiting for the next attempt, once in two seconds", async () => {
  vi.spyOn(Math, "random").mockReturnValue(0.999999);
  let isDown = true;
  const streams: Body[] = [];
  answering(({ method, signal }) => {
    if (method === "POST") return json({ id: "0000000a-2", topic: "t", time: "" }, 201);
    if (isDown) throw new TypeError("refused");
    const body = new Body(signal);
    streams.push(body);
    return body.response;
  });
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  const attempts = (): number => asked.filter(({ method }) => method === "GET").length;
  expect(attempts()).toBe(1);
  for (let n = 0; n < 5; n++) await client.publish("t", n);
  await pass();
  expect(attempts()).toBe(2); // not one with each publish
  isDown = false;
  await pass(2100);
  await client.publish("t", 5);
  await pass();
  await last(streams).begin();
  expect(client.state).toBe("live");
  const before = attempts();
  await client.publish("t", 6);
  await pass();
  expect(attempts()).toBe(before);
});

test("a page that is shown again ends waiting, and leaves a stream that lives", async () => {
  const target = page();
  vi.spyOn(Math, "random").mockReturnValue(0.999999);
  const streams = bodies();
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  target.dispatchEvent(new Event("visibilitychange"));
  await pass();
  expect(asked.length).toBe(1);
  await last(streams).break();
  expect(asked.length).toBe(1);
  target.dispatchEvent(new Event("visibilitychange"));
  await pass();
  expect(asked.length).toBe(2);
});

test("a page that is shown after a long sleep finds its stream dead, whatever timers did", async () => {
  const target = page();
  const streams = bodies();
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin();
  vi.spyOn(performance, "now").mockReturnValue(performance.now() + 3_600_000); // no timer ran
  target.dispatchEvent(new Event("visibilitychange"));
  await pass();
  expect([client.state, streams[0]?.isGivenUp]).toEqual(["reconnecting", true]);
});

test("a page that is put away gives its connection back, and goes on where it was", async () => {
  const target = page();
  const streams = bodies();
  const { client } = open();
  const seen: unknown[] = [];
  client.subscribe("t", ({ data }) => seen.push(data));
  await pass();
  await last(streams).begin("0000000a-1");
  await last(streams).message("0000000a-2", 1);
  target.dispatchEvent(new Event("pagehide"));
  vi.setSystemTime(Date.now() + 100_000); // and timers stand still
  await pass();
  expect([asked.length, streams[0]?.isGivenUp, client.state]).toEqual([1, true, "reconnecting"]);
  target.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  await pass();
  expect(last(after())).toBe("0000000a-2");
  await last(streams).begin("0000000a-2");
  await last(streams).message("0000000a-3", 2);
  expect([seen, client.state]).toEqual([[1, 2], "live"]);
});

test.each([
  ["a page that freezes and wakes without being shown again", ["freeze", "visibilitychange"]],
  ["Safari's order", ["pagehide", "freeze", "resume"]],
  ["a page shown that was not kept", ["pagehide", "pageshow"]],
  ["the network comes back", ["offline", "pagehide", "online"]],
  ["no event at all", ["pagehide"]],
])("a page that was put away and lives on is told what it missed: %s", async (_, events) => {
  const target = page();
  const streams = bodies();
  const { client } = open();
  const seen: unknown[] = [];
  client.subscribe("t", ({ data }) => seen.push(data));
  await pass();
  await last(streams).begin("0000000a-1");
  for (const name of events) target.dispatchEvent(new Event(name));
  const later = client.subscribe("u", () => {});
  await pass(2100);
  for (const body of streams) if (!body.isGivenUp) await body.begin("0000000a-1");
  await pass(100);
  await last(streams).begin("0000000a-1");
  await later.ready;
  await last(streams).message("0000000a-2", "missed");
  expect([seen, client.state]).toEqual([["missed"], "live"]);
});

const steps = fc.array(
  fc.record({
    name: fc.constantFrom("pagehide", "pageshow", "freeze", "resume", "visibilitychange", "offline", "online"),
    persisted: fc.boolean(),
    hidden: fc.boolean(),
    ms: fc.constantFrom(0, 1, 1999, 2001),
  }),
  { maxLength: 12 },
);

test("whatever order a browser tells it in, a page that runs is live, and says so only if it is", async () => {
  const run = fc.asyncProperty(steps, async (steps) => {
    const target = page();
    const shown = { hidden: false };
    vi.stubGlobal("document", shown);
    const streams = bodies();
    const begun = new Set<Body>();
    const { client } = open({ shareTabs: false });
    const seen: unknown[] = [];
    client.subscribe("t", ({ data }) => seen.push(data));
    const isOpen = (body: Body): boolean => !body.isGivenUp && begun.has(body);
    const settle = async (ms = 0): Promise<void> => {
      await pass(ms);
      for (const body of streams.filter((body) => !body.isGivenUp && !begun.has(body))) {
        begun.add(body);
        await body.begin("0000000a-1");
      }
    };
    try {
      await settle();
      for (const { name, persisted, hidden, ms } of steps) {
        shown.hidden = hidden;
        target.dispatchEvent(Object.assign(new Event(name), { persisted }));
        await pass();
        expect(client.state === "live" && !streams.some(isOpen)).toBe(false);
        await settle(ms);
      }
      await settle(2001);
      expect([streams.filter(isOpen).length, client.state]).toEqual([1, "live"]);
      await streams.find(isOpen)!.message("0000000a-2", 1);
      expect(seen).toEqual([1]);
    } finally {
      client.close();
      await pass();
    }
  });
  await fc.assert(run, { numRuns: 60 });
});

test("a machine that slept, while its monotonic clock stood still, connects anew as the page is shown", async () => {
  const target = page();
  const streams = bodies();
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin("0000000a-7");
  await pass(1000);
  target.dispatchEvent(new Event("visibilitychange")); // hidden
  vi.setSystemTime(Date.now() + 3_600_000);
  target.dispatchEvent(new Event("visibilitychange"));
  await pass();
  expect([streams[0]?.isGivenUp, ...after()]).toEqual([true, "latest", "0000000a-7"]);
});

test("a machine that slept connects anew within half a minute, if nothing else tells of it", async () => {
  const streams = bodies();
  const { client } = open({ silenceTimeout: 3_600_000 });
  client.subscribe("t", () => {});
  await pass();
  await last(streams).begin("0000000a-7");
  await pass(20_000);
  vi.setSystemTime(Date.now() + 60_000);
  await pass(30_000);
  expect([streams[0]?.isGivenUp, ...after()]).toEqual([true, "latest", "0000000a-7"]);
});

test("a clock that is set costs at most a connection, and no message", async () => {
  const streams = bodies();
  const { client, errors } = open();
  const seen: unknown[] = [];
  client.subscribe("t", ({ data }) => seen.push(data));
  await pass();
  await last(streams).begin();
  let seq = 2;
  const goOn = async (time: string): Promise<number> => {
    vi.setSystemTime(new Date(time));
    for (let count = 0; count < 20; count++) {
      await last(streams).message(`0000000a-${seq}`, seq++);
      const before = asked.length;
      await pass(5000);
      if (asked.length > before) await last(streams).begin(last(after()) as string);
    }
    return asked.length;
  };
  expect(await goOn("2001-01-01")).toBe(1);
  expect(await goOn("2099-01-01")).toBe(2); // it may have slept
  expect([client.state, errors, seen]).toEqual(["live", [], [...Array(40).keys()].map((each) => each + 2)]);
});

test("a wake from sleep that ends a wait connects once", async () => {
  vi.spyOn(Math, "random").mockReturnValue(0.999999);
  answering(() => problem(503, "no_leader", { "Retry-After": "25" }));
  const target = page();
  const { client } = open();
  client.subscribe("t", () => {});
  await pass();
  expect(asked.length).toBe(1);
  vi.setSystemTime(Date.now() + 3_600_000);
  target.dispatchEvent(new Event("visibilitychange"));
  await pass();
  expect(asked.length).toBe(2);
});

// --- what is in it ---

test("what no broker sends is an error, and what follows is handled", async () => {
  const streams = bodies();
  const { client, errors } = open();
  const seen: unknown[] = [];
  const subscription = client.subscribe("t", ({ data }) => seen.push(data));
  await pass();
  await last(streams).begin("0000000a-1");
  await last(streams).send("id: 0000000a-2\ndata: {not json\n\n");
  await last(streams).send("id: 0000000a-3\ndata: null\n\n");
  await last(streams).send('id: 0000000a-4\ndata: {"no":"topic"}\n\n');
  await last(streams).send('id: nonsense\ndata: {"topic":"t","data":0}\n\n');
  await last(streams).send("id: 0000000a-5\nevent: gap\ndata: ]\n\n");
  await last(streams).send("id: 0000000a-6\nevent: of-a-later-version\ndata: {}\n\n");
  await last(streams).message("0000000a-7", "fine");
  expect(errors.map(({ code }) => code)).toEqual([...Array(5).fill("malformed_event"), "gap"]);
  expect(errors[0]?.detail).toContain("{not json");
  expect([seen, subscription.cursor]).toEqual([["fine"], "0000000a-7"]);
});

test("what is malformed is handed to nobody, whatever was asked for", async () => {
  const streams = bodies();
  const { client, errors } = open();
  const seen: unknown[] = [];
  client.on("topic-deleted", (deleted) => seen.push(deleted));
  for (const filter of [">", "*", "undefined"]) client.subscribe(filter, ({ data }) => seen.push(`${filter} ${data}`));
  await pass(100);
  await last(streams).begin("0000000a-1");
  await last(streams).send('id: 0000000a-2\ndata: {"id":"0000000a\n\n');
  await last(streams).send("id: 0000000a-3\nevent: topic-deleted\ndata: {oops\n\n");
  await last(streams).send("id: 0000000a-4\nevent: topic-deleted\ndata: {}\n\n");
  await last(streams).message("0000000a-5", "fine", "a");
  expect(seen).toEqual(["> fine", "* fine"]);
  expect(errors.map(({ code }) => code)).toEqual(["malformed_event", "malformed_event"]);
});

test("a loop ends with the client, after what it has got", async () => {
  const streams = bodies();
  const { client } = open();
  const seen: unknown[] = [];
  const control = new AbortController(); // another way to end it, which is not used
  for (const options of [{}, { signal: control.signal }]) {
    void (async () => {
      for await (const { data } of client.messages("t", options)) seen.push(data);
      seen.push("over");
    })();
  }
  await pass();
  await last(streams).begin();
  await last(streams).message("0000000a-2", 1);
  expect(seen).toEqual([1, 1]);
  client.close();
  await pass();
  expect(seen).toEqual([1, 1, "over", "over"]);
  expect(await client.messages("t").next()).toEqual({ done: true, value: undefined });
});

test("what comes after a stream was closed is not handled", async () => {
  const streams = bodies();
  const { client } = open();
  const seen: unknown[] = [];
  const subscription = client.subscribe("t", ({ data }) => seen.push(data));
  await pass();
  await last(streams).begin();
  subscription.close();
  await last(streams)
    .message("0000000a-2", 1)
    .catch(() => {});
  expect(seen).toEqual([]);
});

// --- what is refused later ---

test("when rights change, only the subscription without them fails", async () => {
  let forbidden = "";
  const streams: Body[] = [];
  answering(({ url, signal }) => {
    if (url.searchParams.getAll("topic").includes(forbidden)) return problem(403, "forbidden");
    streams.push(new Body(signal));
    const id = url.searchParams.get("after") as string;
    void last(streams).begin(id === "latest" ? "0000000a-1" : id);
    return last(streams).response;
  });
  const { client, errors } = open();
  const failed: string[] = [];
  for (const topic of ["a", "b", "c"]) {
    client.subscribe(topic, () => {}, { onError: ({ code }) => failed.push(`${topic} ${code}`) });
  }
  await pass(100);
  const open_ = (): Body[] => streams.filter(({ isGivenUp }) => !isGivenUp);
  expect(open_().length).toBe(1);
  forbidden = "b";
  await last(open_()).heartbeat("0000000a-8");
  await last(open_()).break();
  await pass(3000);
  await pass(3000);
  for (const stream of open_()) await stream.heartbeat("0000000a-9");
  await pass(3000);
  expect(failed).toEqual(["b forbidden"]);
  expect([client.state, errors]).toEqual(["live", []]);
  expect(last(asked).url.searchParams.getAll("topic")).toEqual(["a", "c"]);
  expect(after().slice(-3)).not.toContain("latest");
});

test("a URL that is none is refused at once", () => {
  expect(() => open({ urls: "not a url" })).toThrow(TypeError);
});
