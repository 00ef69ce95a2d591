// The client in a real Chromium, as the daemon serves it: tabs that share one stream, and what
// becomes of it when a tab, the network or a node goes.

import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
// @ts-expect-error It has no types.
import { bundle } from "../scripts/build.mjs";
import type { Client, connect } from "../src/index.js";
import { Broker, startCluster, until } from "./broker.js";

declare global {
  interface Window {
    client: Client;
    seen: unknown[];
    errors: string[];
    connect: typeof connect;
  }
}

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const FOLDERS = (process.env.PATH ?? "").split(delimiter);
const EXECUTABLE =
  process.env.CHROMIUM ??
  NAMES.flatMap((name) => FOLDERS.map((folder) => join(folder, name))).find((path) => existsSync(path));
const ARGUMENTS = [
  ...["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"],
  ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
  "--host-resolver-rules=MAP insecure.test 127.0.0.1",
];

if (!EXECUTABLE) {
  const message = "no Chromium on the PATH; the variable CHROMIUM may name one";
  if (process.env.REPL_BROKER_TEST_REQUIRE_BROWSER === "1") throw new Error(message);
  console.warn(`tests/browser.test.ts is skipped: ${message}`);
}

describe.skipIf(!EXECUTABLE)("in Chromium", () => {
  let browser: Browser;
  let broker: Broker;
  let context: BrowserContext;

  beforeAll(async () => {
    [browser, broker] = await Promise.all([
      chromium.launch({ executablePath: EXECUTABLE as string, args: ARGUMENTS }),
      Broker.start({ limits_heartbeat_seconds: 1, http_hosts: "insecure.test" }),
    ]);
  });
  afterAll(() => Promise.all([browser?.close(), broker?.remove()]));
  afterEach(async () => {
    await context.close();
    await broker.waitStreams(0);
  });

  /** A profile of its own: what is stored and shared there is not seen elsewhere. */
  async function profile(): Promise<void> {
    context = await browser.newContext();
    // Whether the holder is there is asked often, so that the tests need not wait for it.
    await context.addInitScript(() => {
      const plain = window.setInterval;
      window.setInterval = ((act: () => void, ms: number) => plain(act, ms / 20)) as typeof window.setInterval;
    });
  }

  /** A tab that follows `filters`, and writes down what it gets as `topic data`. */
  async function tab(filters: string | string[], options: { url?: string; urls?: string[]; shareTabs?: boolean | string; build?: string } = {}) {
    const { url = broker.url, urls = [url], shareTabs, build } = options;
    const page = await context.newPage();
    if (build) await page.route("**/client.js", (route) => route.fulfill({ contentType: "text/javascript", body: build }));
    await page.goto(`${url}/healthz`);
    await page.addScriptTag({ type: "module", content: `import { connect } from "/client.js"; window.connect = connect;` });
    await page.waitForFunction(() => window.connect);
    await page.evaluate(
      async ([urls, filters, shareTabs]) => {
        window.seen = [];
        window.errors = [];
        window.client = window.connect({ urls: urls as string[], ...(shareTabs !== undefined && { shareTabs: shareTabs as boolean }) });
        window.client.on("error", (error) => window.errors.push(error.code));
        await window.client.subscribe(filters as string[], ({ topic, data }) => window.seen.push(`${topic} ${data}`)).ready;
      },
      [urls, filters, shareTabs] as const,
    );
    return page;
  }

  /** Whether it is this tab that has the streams. */
  const isHolder = (page: Page): Promise<unknown> =>
    page.evaluate(async () =>
      navigator.locks.request("who am I", async (): Promise<boolean> => {
        const { held = [] } = await navigator.locks.query();
        const mine = held.find(({ name }) => name === "who am I")?.clientId;
        return held.some(({ name, clientId }) => name?.endsWith(" token ") && clientId === mine);
      }),
    );

  /** Nothing runs in the page until what this gives is called. */
  async function stop(page: Page): Promise<() => Promise<unknown>> {
    const session = await context.newCDPSession(page);
    await session.send("Debugger.enable");
    const paused = new Promise((resolve) => session.once("Debugger.paused", resolve));
    await session.send("Debugger.pause");
    await paused;
    return () => session.send("Debugger.disable");
  }

  const seen = (page: Page): Promise<unknown[]> => page.evaluate(() => window.seen);
  const errors = (page: Page): Promise<unknown[]> => page.evaluate(() => window.errors);
  const waitSeen = (page: Page, count: number): Promise<unknown> =>
    page.waitForFunction((count) => window.seen.length >= count, count);
  const lines = (topic: string, count: number): string[] => [...Array(count).keys()].map((number) => `${topic} ${number}`);

  /** Publishes 0, 1, 2 … until it is ended; it gives how many there are. */
  function publishing(topic: string): () => Promise<number> {
    let isOver = false;
    const done = (async () => {
      let count = 0;
      while (!isOver) await broker.publish(topic, count++);
      return count;
    })();
    return () => {
      isOver = true;
      return done;
    };
  }

  test("twelve tabs have one connection, and each gets what it asked for", async () => {
    await profile();
    const tabs = await Promise.all([...Array(12).keys()].map((number) => tab(["tabs.all", `tabs.${number}`])));
    await broker.waitStreams(1);
    await broker.publish("tabs.all", "everybody");
    for (let number = 0; number < 12; number++) await broker.publish(`tabs.${number}`, number);
    for (const [number, page] of tabs.entries()) {
      await waitSeen(page, 2);
      expect(await seen(page)).toEqual(["tabs.all everybody", `tabs.${number} ${number}`]);
      expect(await page.evaluate(() => window.client.state)).toBe("live");
    }
    // Six connections to a host: with a stream each, none of them could publish.
    await Promise.all(tabs.map((page, number) => page.evaluate((number) => window.client.publish("tabs.all", number), number)));
    for (const page of tabs) {
      await waitSeen(page, 14);
      expect(new Set(await seen(page)).size).toBe(14);
      expect(await errors(page)).toEqual([]);
    }
    expect(await broker.streams()).toBe(1);
  });

  test.each([
    ["is closed", (page: Page) => page.close()],
    ["goes elsewhere", async (page: Page) => void (await page.goto("about:blank"))],
    ["crashes", (page: Page) => page.goto("chrome://crash").then(() => {}, () => {})],
    ["stands still", (page: Page) => stop(page)],
  ])("when the tab that has the stream %s, the others lose nothing and get nothing twice", async (_, leave) => {
    await profile();
    const first = await tab("go.a");
    const others = [await tab("go.a"), await tab("go.*")];
    await broker.waitStreams(1);
    const end = publishing("go.a");
    await waitSeen(others[1] as Page, 20);
    await leave(first);
    const before = (await seen(others[0] as Page)).length;
    await waitSeen(others[0] as Page, before + 50);
    const count = await end();
    for (const page of others) {
      await page.waitForFunction((last) => window.seen.at(-1) === last, `go.a ${count - 1}`);
      const own = (await seen(page)) as string[];
      expect(own).toEqual(lines("go.a", count).slice(-own.length));
      expect(await errors(page)).toEqual([]);
    }
    expect(((await seen(others[0] as Page)) as string[]).length).toBeGreaterThan(before);
  });

  test("a tab that stood still while another took its streams follows that one", async () => {
    await profile();
    const first = await tab("thaw");
    const second = await tab("thaw");
    await broker.publish("thaw", 0);
    await waitSeen(first, 1);
    expect([await isHolder(first), await isHolder(second)]).toEqual([true, false]);
    const goOn = await stop(first);
    await broker.publish("thaw", 1);
    await waitSeen(second, 2);
    expect(await isHolder(second)).toBe(true);
    await broker.publish("thaw", 2);
    await waitSeen(second, 3);
    await goOn();
    await broker.publish("thaw", 3);
    for (const page of [first, second]) {
      await waitSeen(page, 4);
      expect(await seen(page)).toEqual(lines("thaw", 4));
    }
    expect([await isHolder(first), await isHolder(second)]).toEqual([false, true]);
    await broker.waitStreams(1);
  });

  test("a tab that stood still while messages came to another gets them all", async () => {
    await profile();
    const first = await tab("pause");
    const second = await tab("pause");
    await broker.publish("pause", 0);
    await waitSeen(second, 1);
    const goOn = await stop(second);
    await broker.publish("pause", 1, 2, 3);
    await waitSeen(first, 4);
    await goOn();
    await broker.publish("pause", 4);
    for (const page of [first, second]) {
      await page.waitForFunction(() => window.seen.at(-1) === "pause 4");
      expect(await seen(page)).toEqual(lines("pause", 5));
    }
    await broker.waitStreams(1);
  });

  test.each([0, 1])("a tab with another build gets everything, and so do the others: it comes in place %d", async (place) => {
    await profile();
    const build = await bundle("tests/later.ts");
    const pages: Page[] = [];
    for (const index of [0, 1]) pages.push(await tab("builds", index === place ? { build } : {}));
    await broker.waitStreams(1);
    expect([await isHolder(pages[0] as Page), await isHolder(pages[1] as Page)]).toEqual([true, false]);
    await broker.publish("builds", 0, 1);
    for (const page of pages) await waitSeen(page, 2);
    await pages[0]?.close();
    await broker.publish("builds", 2);
    await waitSeen(pages[1] as Page, 3);
    expect(await seen(pages[1] as Page)).toEqual(lines("builds", 3));
    expect(await errors(pages[1] as Page)).toEqual([]);
  });

  test("when a tab is gone, what it alone asked for is not asked for any more", async () => {
    await profile();
    await tab("rest.a");
    const second = await tab("rest.b");
    await broker.waitStreams(1);
    const subscribers = async (topic: string): Promise<number> =>
      (await (await fetch(`${broker.url}/v1/topics/${topic}`)).json()).subscribers;
    await broker.publish("rest.b", 0);
    await until(async () => (await subscribers("rest.b")) === 1, "a subscriber");
    await second.close();
    await until(async () => (await subscribers("rest.b")) === 0, "no subscriber");
    await broker.waitStreams(1);
  });

  test("a filter that is refused fails in its own tab alone", async () => {
    await profile();
    const pages = [await tab("fine"), await tab("fine")];
    for (const page of pages) {
      const failure = await page.evaluate(
        () =>
          new Promise((resolve) =>
            window.client.subscribe("not..fine", () => {}, {
              onError: ({ name, code, status, detail }) => resolve({ name, code, status, detail }),
            }),
          ),
      );
      expect(failure).toMatchObject({ code: "invalid_filter", status: 400, detail: expect.stringContaining("not..fine") });
    }
    await broker.publish("fine", 1);
    for (const page of pages) {
      await waitSeen(page, 1);
      expect(await errors(page)).toEqual([]);
    }
  });

  test("a gap is told in each tab that it may concern", async () => {
    await profile();
    const pages = [await tab("gaps.own"), await tab("gaps.own")];
    await broker.publish("gaps.old", 0);
    const told = await Promise.all(
      pages.map((page) =>
        page.evaluate(
          () =>
            new Promise((resolve) =>
              window.client.subscribe("gaps.old", () => {}, { after: "00000000-1", onGap: ({ reason }) => resolve(reason) }),
            ),
        ),
      ),
    );
    expect(told).toEqual(["unknown_epoch", "unknown_epoch"]);
    for (const page of pages) expect(await errors(page)).toEqual([]);
  });

  test("offline and online again: messages are caught up with, and what was published goes out", async () => {
    await profile();
    const pages = [await tab("net"), await tab("net")];
    await broker.publish("net", 0);
    for (const page of pages) await waitSeen(page, 1);
    await context.setOffline(true);
    const published = Promise.all(pages.map((page) => page.evaluate(() => window.client.publish("net.out", "late"))));
    await broker.publish("net", 1, 2, 3);
    await context.setOffline(false);
    for (const page of pages) {
      await waitSeen(page, 4);
      expect(await seen(page)).toEqual(lines("net", 4));
      expect(await errors(page)).toEqual([]);
    }
    expect((await published).length).toBe(2);
  });

  test("a daemon that is killed and started again: all tabs go on", async () => {
    await profile();
    const pages = [await tab("daemon"), await tab("daemon")];
    await broker.publish("daemon", 0);
    for (const page of pages) await waitSeen(page, 1);
    await broker.kill();
    for (const page of pages) await page.waitForFunction(() => window.client.state === "reconnecting");
    await broker.start();
    await broker.publish("daemon", 1);
    for (const page of pages) {
      await waitSeen(page, 2);
      expect(await seen(page)).toEqual(lines("daemon", 2));
      expect([await errors(page), await page.evaluate(() => window.client.state)]).toEqual([[], "live"]);
    }
  });

  test("tabs that should not share do not, and neither do tabs of different users", async () => {
    await profile();
    await tab("own", { shareTabs: false });
    await tab("own", { shareTabs: false });
    await broker.waitStreams(2);
    await tab("own", { shareTabs: "ana" });
    await tab("own", { shareTabs: "ana" });
    await tab("own", { shareTabs: "ben" });
    await broker.waitStreams(4);
  });

  test("without Web Locks, as on plain HTTP, each tab has its own stream", async () => {
    await profile();
    const url = `http://insecure.test:${broker.port}`;
    const pages = [await tab("plain", { url }), await tab("plain", { url })];
    expect(await (pages[0] as Page).evaluate(() => navigator.locks === undefined)).toBe(true);
    await broker.waitStreams(2);
    await (pages[0] as Page).evaluate(() => window.client.publish("plain", 0));
    for (const page of pages) {
      await waitSeen(page, 1);
      expect(await seen(page)).toEqual(["plain 0"]);
    }
  });

  test("in a worker", async () => {
    await profile();
    const page = await context.newPage();
    await page.goto(`${broker.url}/healthz`);
    const got = await page.evaluate(async () => {
      const code = `
        const { connect } = await import("${location.origin}/client.js");
        const client = connect({ urls: "${location.origin}" });
        await client.subscribe("worker", ({ data }) => postMessage(data)).ready;
        await client.publish("worker", "from a worker");`;
      const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
      const worker = new Worker(url, { type: "module" });
      return await new Promise((resolve) => (worker.onmessage = ({ data }) => resolve(data)));
    });
    expect(got).toBe("from a worker");
  });

  test("a node that is killed: the page goes on at another one", async () => {
    await profile();
    const cluster = await startCluster({ http_cors_origins: "*" });
    try {
      const urls = cluster.map(({ url }) => url);
      const page = await tab("cluster", { url: urls[0] as string, urls });
      await page.evaluate(() => window.client.publish("cluster", 0));
      await waitSeen(page, 1);
      await cluster[0]?.kill();
      await page.evaluate(() => window.client.publish("cluster", 1));
      await waitSeen(page, 2);
      expect(await seen(page)).toEqual(lines("cluster", 2));
      expect(await errors(page)).toEqual([]);
    } finally {
      await Promise.all(cluster.map((node) => node.remove()));
    }
  });
});
