// The code of the pages is code that compiles, and the built client is as small as it says.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { gzipSync } from "node:zlib";
import ts from "typescript";
import { expect, test } from "vitest";

const HERE = join(import.meta.dirname, "..");
const ROOT = join(HERE, "../..");
const PAGES = ["docs/how-to/use-the-typescript-client.md", "clients/typescript/README.md"];

/** What blocks may assume, unless they say it themselves: how that looks, and what it is. */
const ASSUMED: [RegExp, string][] = [
  [/\bconst client\b/, `declare const client: import("repl-broker").Client;`],
  [/\binterface Order\b/, `interface Order { id: number; state: "new" | "paid" | "sent" }`],
];

test("the code of the pages compiles", () => {
  const folder = mkdtempSync(join(HERE, "node_modules/.docs-"));
  try {
    const files = PAGES.flatMap((page) => {
      const text = readFileSync(join(ROOT, page), "utf8");
      return [...text.matchAll(/^```ts\n([^]*?)^```$/gm)].map(([, block = ""], index) => {
        const file = join(folder, `${page.replaceAll("/", "-")}-${index}.ts`);
        const before = ASSUMED.map(([own, text]) => (own.test(block) ? "" : text)).join("\n");
        writeFileSync(file, `${before}\n${block}\nexport {};\n`);
        return file;
      });
    });
    expect(files.length).toBeGreaterThan(8);
    const program = ts.createProgram(files, {
      strict: true,
      noEmit: true,
      skipLibCheck: true,
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      moduleResolution: ts.ModuleResolutionKind.Bundler,
      lib: ["lib.es2023.d.ts", "lib.dom.d.ts"],
      types: ["node"],
      paths: { "repl-broker": [join(ROOT, "repl_broker/web/javascript/client.d.ts")] },
    });
    const found = ts.getPreEmitDiagnostics(program).map(({ file, start = 0, messageText }) => {
      const line = file?.text.slice(0, start).split("\n").length ?? 0;
      return `${relative(folder, file?.fileName ?? "")}:${line}: ${ts.flattenDiagnosticMessageText(messageText, "\n")}`;
    });
    expect(found).toEqual([]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("the client is under eight kibibytes gzipped, with everything in it", () => {
  const code = readFileSync(join(ROOT, "repl_broker/web/javascript/client.js"));
  expect(gzipSync(code, { level: 9 }).length).toBeLessThan(8 * 1024);
  expect(code.toString()).not.toMatch(/\bimport\b|\bfrom"/);
});
