#!/usr/bin/env node
// Publish from Node, with nothing but its own fetch (Node 20 or later).
//
//     node publish.mjs orders '{"order":42,"state":"paid"}'
//
// A message is sent again, under the same Idempotency-Key, for as long as that may help. However
// often it was sent, it is kept once.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const URL_OF_NODE = process.env.REPL_BROKER_URL ?? "http://127.0.0.1:4080";
const TRY_AGAIN = new Set([408, 429, 500, 502, 503, 504]);

/** Publish `data` once; resolves with the broker's answer. */
export async function publish(topic, data, { key = randomUUID(), patience = 30_000 } = {}) {
  const end = performance.now() + patience;
  for (let attempt = 0; ; attempt++) {
    const { answer, problem, retryAfter = 0, isFinal } = await send(topic, JSON.stringify(data), key);
    if (answer) return answer;
    const wait = retryAfter + (100 + 100 * Math.random()) * 2 ** Math.min(attempt, 5);
    if (isFinal || performance.now() + wait > end) throw new Error(`${topic}: not published: ${problem}`);
    await sleep(wait);
  }
}

async function send(topic, body, key) {
  try {
    const response = await fetch(`${URL_OF_NODE}/v1/topics/${topic}/messages`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": key },
      body,
      signal: AbortSignal.timeout(5000),
    });
    if (response.ok) return { answer: await response.json() };
    return {
      problem: await response.text(),
      retryAfter: 1000 * (Number(response.headers.get("Retry-After")) || 0),
      isFinal: !TRY_AGAIN.has(response.status),
    };
  } catch (error) {
    return { problem: `${URL_OF_NODE}: ${error.cause?.code ?? error.message}` }; // refused, reset, timed out
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [topic, text] = process.argv.slice(2);
  try {
    if (text === undefined) throw new Error("usage: node publish.mjs TOPIC JSON");
    console.log(JSON.stringify(await publish(topic, JSON.parse(text))));
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
