// Nodes that are killed, restarted and lost under a client.

import { afterEach, expect, test } from "vitest";
import { type Client, type ClientOptions, connect, type Gap } from "../src/index.js";
import { Broker, startCluster, until } from "./broker.js";

const clients: Client[] = [];
const brokers: Broker[] = [];
const errors: unknown[] = [];

afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await Promise.all(brokers.splice(0).map((broker) => broker.remove()));
  expect(errors.splice(0)).toEqual([]);
});

function open(options: ClientOptions): Client {
  const client = connect(options);
  client.on("error", (error) => errors.push(error));
  clients.push(client);
  return client;
}

async function start(keys: Record<string, unknown> = {}): Promise<Broker> {
  const broker = await Broker.start(keys);
  brokers.push(broker);
  return broker;
}

/** Publishes 0, 1, 2 … one after the other, until it is ended. Gives how many are kept. */
function publishing(client: Client, topic: string): () => Promise<number> {
  let isOver = false;
  const done = (async () => {
    let count = 0;
    while (!isOver) await client.publish(topic, count++);
    return count;
  })();
  return () => {
    isOver = true;
    return done;
  };
}

const range = (count: number): number[] => [...Array(count).keys()];

test("in a cluster a killed node costs nothing: what is published goes on, and is received once", async () => {
  const cluster = await startCluster();
  brokers.push(...cluster);
  const urls = cluster.map(({ url }) => url);
  const { leader, members } = await (await fetch(`${urls[0]}/v1/cluster`)).json();
  const order = [...urls].sort((a) => (members.find((each: any) => each.id === leader).http_url === a ? -1 : 1));
  const reader = open({ urls: order }); // at the leader
  const others = open({ urls: order[1] as string });
  const seen: unknown[] = [];
  const beside: unknown[] = [];
  await reader.subscribe("kill.a", ({ data }) => seen.push(data)).ready;
  await others.subscribe("kill.*", ({ data }) => beside.push(data)).ready;
  const end = publishing(open({ urls: order }), "kill.a");
  await until(() => seen.length > 20, "messages");
  await cluster.find(({ url }) => url === order[0])?.kill();
  const before = seen.length;
  await until(() => seen.length > before + 20, "messages after the leader is gone");
  const count = await end();
  await until(() => seen.length >= count && beside.length >= count, "the rest");
  expect(seen).toEqual(range(count));
  expect(beside).toEqual(range(count));
}, 40_000);

test("a node that is killed and started again is gone on with, with nothing lost or twice", async () => {
  const broker = await start();
  const client = open({ urls: broker.url });
  const seen: unknown[] = [];
  await client.subscribe("again", ({ data }) => seen.push(data)).ready;
  const end = publishing(open({ urls: broker.url }), "again");
  await until(() => seen.length > 20, "messages");
  await broker.kill();
  await broker.start();
  const before = seen.length;
  await until(() => seen.length > before + 20, "messages");
  const count = await end();
  await until(() => seen.length >= count, "the rest");
  expect(seen).toEqual(range(count));
}, 40_000);

test("a node that shuts down is waited for, and one with other data is told of as a gap", async () => {
  const broker = await start();
  const client = open({ urls: broker.url });
  const seen: unknown[] = [];
  const gaps: Gap[] = [];
  await client.subscribe("lost", ({ data }) => seen.push(data), { onGap: (gap) => gaps.push(gap) }).ready;
  await broker.publish("lost", 1);
  await until(() => seen.length === 1, "a message");
  await broker.stop();
  await until(() => client.state === "reconnecting", "the end to be seen");
  broker.forget();
  await broker.start();
  await broker.publish("lost", 2);
  await until(() => seen.length === 2, "a message of the new node");
  expect([seen, gaps.map(({ reason }) => reason)]).toEqual([[1, 2], ["unknown_epoch"]]);
}, 40_000);

test("a message of 10 MB arrives whole, and one that is too large is refused in the broker's words", async () => {
  const broker = await start({ limits_message_bytes: 12 << 20, limits_batch_bytes: 12 << 20 });
  const client = open({ urls: broker.url });
  const large = "é".repeat(5 << 20);
  const got = new Promise((resolve) => client.subscribe<string>("large", ({ data }) => resolve(data === large)));
  await until(() => client.state === "live", "live");
  await client.publish("large", large);
  expect(await got).toBe(true);
  await expect(client.publish("large", large + large)).rejects.toMatchObject({ code: "message_too_large", status: 413 });
});
