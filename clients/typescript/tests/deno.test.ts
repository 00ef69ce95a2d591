// The client in Deno, imported from the daemon, with its types.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Broker } from "./broker.js";

const DENO = join(import.meta.dirname, "../node_modules/.bin/deno");
const folder = mkdtempSync(join(tmpdir(), "repl-broker-deno-"));
let broker: Broker;

beforeAll(async () => {
  broker = await Broker.start();
});
afterAll(async () => {
  await broker.remove();
  rmSync(folder, { recursive: true });
});

/** What a program prints. Its types are checked, too. */
async function run(program: string): Promise<string> {
  const file = join(folder, "program.ts");
  writeFileSync(file, program);
  const child = spawn(DENO, ["run", "--check", "--no-config", "--allow-import", "--allow-net=127.0.0.1", file], {
    env: { ...process.env, DENO_DIR: folder, DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1" },
  });
  let [output, errors] = ["", ""];
  child.stdout.on("data", (data) => (output += data));
  child.stderr.on("data", (data) => (errors += data));
  const code = await new Promise((resolve) => child.once("exit", resolve));
  if (code) throw new Error(errors);
  return output;
}

test("a program publishes and subscribes", async () => {
  const output = await run(`
    import { connect, type Message } from "${broker.url}/client.js";
    const client = connect({ urls: "${broker.url}" });
    const got = new Promise<Message<{ n: number }>>((resolve) => client.subscribe<{ n: number }>("deno", resolve));
    for await (const _ of client.messages("deno.never", { signal: AbortSignal.timeout(1) }));
    await client.publish("deno", { n: 42 });
    await client.publish("deno", { n: 43 });
    console.log((await client.history("deno")).messages.length, client.state, typeof (await got).data.n);
    client.close();
    Deno.exit(); // its timers of signals, which nobody waits for any more, hold the process`);
  expect(output).toBe("2 live number\n");
});
