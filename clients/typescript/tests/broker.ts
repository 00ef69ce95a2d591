// Real nodes: `python -m repl_broker serve`, as users run them.
//
//     Broker      one node: start, kill, start again on its port and data
//     startCluster three of them
//
// A port lies below those that the system hands out: a client that connects to a dead port up
// there may be given that very port as its own, and talk to itself.

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../../..");
const PYTHON = process.env.PYTHON ?? join(ROOT, ".venv/bin/python");
// Linux ends a node with the test that started it, even if that is killed.
const LEASH = existsSync("/usr/bin/setpriv") ? ["setpriv", "--pdeathsig", "KILL", "--"] : [];
const START_MS_MAX = 20_000;

export class Broker {
  readonly url: string;
  readonly folder = mkdtempSync(join(tmpdir(), "repl-broker-client-"));
  #process: ChildProcess | undefined;
  #exited: Promise<unknown> = Promise.resolve();

  private constructor(
    readonly port: number,
    private readonly options: string[],
    private readonly keys: Record<string, string>,
  ) {
    this.url = `http://127.0.0.1:${port}`;
  }

  /** A node that serves. `keys` are of the configuration, as `limits_heartbeat_seconds`. */
  static async start(keys: Record<string, unknown> = {}, ...options: string[]): Promise<Broker> {
    const broker = new Broker(await freePort(), options, environment(keys));
    await broker.start();
    return broker;
  }

  /** On the port and with the data that it had. */
  async start(): Promise<void> {
    this.spawn();
    await this.ready();
  }

  spawn(): void {
    const log = openSync(this.#log, "a");
    const [program, ...words] = [...LEASH, PYTHON, "-m", "repl_broker", "serve", ...this.options];
    words.push("--http", `127.0.0.1:${this.port}`, "--data-dir", join(this.folder, "data"));
    this.#process = spawn(program as string, words, { env: this.keys, stdio: ["ignore", log, log] });
    closeSync(log);
    this.#exited = new Promise((resolve) => this.#process?.once("exit", resolve));
  }

  async ready(): Promise<void> {
    const end = performance.now() + START_MS_MAX;
    for (;;) {
      const response = await fetch(`${this.url}/readyz`).catch(() => undefined);
      await response?.text();
      if (response?.ok) return;
      if (this.#process?.exitCode !== null || performance.now() > end) {
        throw new Error(`${PYTHON} does not serve:\n${readFileSync(this.#log, "utf8")}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** SIGKILL, as a power cut would. */
  async kill(): Promise<void> {
    this.#process?.kill("SIGKILL");
    await this.#exited;
  }

  /** SIGTERM: it says good-bye to its streams. */
  async stop(): Promise<void> {
    this.#process?.kill("SIGTERM");
    await this.#exited;
  }

  /** Its data is gone. It must not run. */
  forget(): void {
    rmSync(join(this.folder, "data"), { recursive: true });
  }

  /** Kill it, and leave nothing. */
  async remove(): Promise<void> {
    await this.kill();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async publish(topic: string, ...data: unknown[]): Promise<string> {
    const response = await fetch(`${this.url}/v1/topics/${topic}/messages`, {
      method: "POST",
      headers: { "Content-Type": "application/x-ndjson" },
      body: data.map((each) => JSON.stringify(each)).join("\n"),
    });
    const receipt = await response.json();
    if (!response.ok) throw new Error(JSON.stringify(receipt));
    return receipt.last_id;
  }

  /** How many event streams are open on it. */
  async streams(): Promise<number> {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    return Number(/^repl_broker_subscribers (\S+)$/m.exec(text)?.[1]);
  }

  /** Until so many streams are open. */
  async waitStreams(count: number): Promise<void> {
    await until(async () => (await this.streams()) === count, `${count} streams on ${this.url}`);
  }

  get #log(): string {
    return join(this.folder, "log");
  }
}

/** Three nodes that vote, and their leader's index. */
export async function startCluster(keys: Record<string, unknown> = {}): Promise<Broker[]> {
  const raft = `127.0.0.1:${await freePort()}`;
  const all = (name: string, ...more: string[]): [Record<string, unknown>, ...string[]] => [
    { ...keys },
    ...["--node-id", name, ...more],
  ];
  const first = await Broker.start(...all("n1", "--bootstrap", "--raft", raft));
  const others = await Promise.all(
    ["n2", "n3"].map(async (name) => {
      const own = `127.0.0.1:${await freePort()}`;
      return Broker.start(...all(name, "--join", raft, "--raft", own));
    }),
  );
  await until(async () => {
    const { members } = (await (await fetch(`${first.url}/v1/cluster`)).json()) as { members: { role: string }[] };
    return members.filter(({ role }) => role !== "learner").length === 3;
  }, "three voters");
  return [first, ...others];
}

/** Look again and again, for what only shows from outside. */
export async function until(isSo: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const end = performance.now() + 25_000;
  while (!(await isSo())) {
    if (performance.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** A port that nobody listens on. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 22_000);
    const isFree = await new Promise<boolean>((resolve) => {
      const server = createServer();
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}

function environment(keys: Record<string, unknown>): Record<string, string> {
  if (!existsSync(PYTHON)) throw new Error(`no ${PYTHON}: run ./dev test, or name a Python with PYTHON=…`);
  const ours = Object.entries(process.env).filter(([name]) => !name.startsWith("REPL_BROKER_"));
  const theirs = Object.entries(keys).map(([name, value]) => [`REPL_BROKER_${name.toUpperCase()}`, `${value}`]);
  return { PYTHONPATH: ROOT, ...Object.fromEntries([...ours, ...theirs]) };
}
