// Builds dist/client.js, one minified module with everything in it, and dist/client.d.ts, its
// types. Both are copied to where the daemon serves them from, so that it needs no Node.
//
//     node scripts/build.mjs           build
//     node scripts/build.mjs --check   and see whether what the daemon serves is just that
//
// Prints the size, and fails if it is over the limit.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { rollup } from "rollup";
import { dts } from "rollup-plugin-dts";
import { minify } from "terser";

export const SIZE_MAX = 8 * 1024; // gzipped
const SPREAD = 32; // what other versions of zlib, and the gzip command, may make of it

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
const PLACES = [join(ROOT, "dist"), join(ROOT, "../../repl_broker/web/javascript")];

// Properties that only the client itself sees, and their short names. Tabs say some of them to each
// other (tabs.ts), and the tabs of a page that was just updated have different builds: so a name
// stays, and a new one gets letters that no other has. Who changes what tabs say gives the channel
// another number in client.ts. The build sees to it that none of them is in the types that users see.
const SHORT = {
  ...{ apart: "b", apartUntil: "x", argument: "j", block: "P", call: "n", count: "A", drop: "o", emit: "i", given: "p", hasWorked: "W" },
  ...{ handle: "R", isJoined: "d", isOpen: "f", isProven: "m", isSuspect: "c", key: "e", lane: "a", leave: "S", look: "E" },
  ...{ matches: "y", poke: "M", post: "B", receive: "l", send: "w", sender: "O", settle: "v", start: "T", stop: "u" },
  ...{ to: "g", url: "k", wake: "t", want: "r", wish: "s", wishes: "h" },
};
const INTERNAL = Object.keys(SHORT);

// Parts of eventsource-parser that do nothing here: it is given whole lines that end in LF, and of
// retry only numbers (blocks.ts), of text from which a TextDecoder has taken the byte order mark.
const DEAD = [
  ["let isFirstChunk, buffer, startingPosition, startingFieldLength, ", "let "],
  ['isFirstChunk = !0, buffer = "", startingPosition = 0, startingFieldLength = -1, ', ""],
  ["buffer = buffer ? buffer + chunk : chunk, isFirstChunk && hasBom(buffer) && (buffer = buffer.slice(BOM.length)), isFirstChunk = !1;", "const buffer = chunk;"],
  [", discardTrailingNewline = !1;", ";"],
  ["discardTrailingNewline && (buffer[position] === `\n` && ++position, discardTrailingNewline = !1);", ""],
  ["fieldLength = startingFieldLength, ", "fieldLength = -1, "],
  ["let index = startingPosition; ", "let index = position; "],
  ['character === "\\r" ? (discardTrailingNewline = !0, lineLength = index - position) : ', ""],
  ["if (lineLength < 0) {\n        startingPosition = length - position, startingFieldLength = fieldLength;\n        break;\n      } else\n        startingPosition = 0, startingFieldLength = -1;", ""],
  ['position === length ? buffer = "" : position > 0 && (buffer = buffer.slice(position));', ""],
  ["Number.isNaN(retry) || ", ""],
  ["const BOM = [239, 187, 191];", ""],
  ["return reset(), { feed, reset };", "reset(); return { feed };"],
  [" || void 0,", ","],
  [".toString()", ""],
  ["valueLength = lineLength - step, ", ""],
  ["position + valueLength", "index + lineLength"],
  ["function hasBom(buffer) {\n  return BOM.every((charCode, index) => buffer.charCodeAt(index) === charCode);\n}", ""],
];

async function withoutDead({ path }) {
  let contents = await readFile(path, "utf8");
  for (const [part, rest] of DEAD) {
    if (!contents.includes(part)) throw new Error(`eventsource-parser has changed, see DEAD in build.mjs: it lacks ${part}`);
    contents = contents.replace(part, rest);
  }
  return { contents };
}

const MINIFY = {
  module: true,
  ecma: 2022,
  compress: {
    ...{ ecma: 2022, passes: 4, pure_getters: true, hoist_funs: true, keep_fargs: false },
    ...{ unsafe: true, unsafe_arrows: true, unsafe_methods: true },
  },
};

/** The files, by name. */
export async function files() {
  const types = await bundleTypes();
  const seen = INTERNAL.filter((name) => new RegExp(`\\b${name}\\b`).test(types.replace(/\/\*[^]*?\*\//g, "")));
  if (seen.length) throw new Error(`These names are public, and cannot be shortened: ${seen.join(", ")}.`);
  return { "client.js": await bundle(), "client.d.ts": types };
}

/** One module, of `entry` and all that it needs. */
export async function bundle(entry = "src/index.ts") {
  const { outputFiles } = await build({
    absWorkingDir: ROOT,
    entryPoints: [entry],
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    mangleProps: new RegExp(`^(${INTERNAL.join("|")})$`),
    mangleCache: SHORT,
    plugins: [{ name: "dead", setup: ({ onLoad }) => onLoad({ filter: /eventsource-parser\/dist\/index\.js$/ }, withoutDead) }],
    write: false,
  });
  const { code } = await minify(outputFiles[0].text, MINIFY);
  return `${code}\n`;
}

async function bundleTypes() {
  const bundled = await rollup({ input: join(ROOT, "src/index.ts"), plugins: [dts({ tsconfig: join(ROOT, "tsconfig.json") })] });
  const { output } = await bundled.generate({ format: "es" });
  return output[0].code;
}

const isMain = process.argv[1] === fileURLToPath(import.meta.url);
if (isMain) {
  const built = await files();
  const size = gzipSync(built["client.js"], { level: 9 }).length;
  console.log(`client.js: ${built["client.js"].length} bytes, ${size} gzipped (limit ${SIZE_MAX})`);
  if (size + SPREAD > SIZE_MAX) throw new Error("client.js is too large.");
  for (const place of PLACES) {
    await mkdir(place, { recursive: true });
    for (const [name, text] of Object.entries(built)) {
      const path = join(place, name);
      const isUpToDate = (await readFile(path, "utf8").catch(() => "")) === text;
      if (!process.argv.includes("--check") || place === PLACES[0]) await writeFile(path, text);
      else if (!isUpToDate) throw new Error(`${path} is not what the sources give: npm run build`);
    }
  }
}
