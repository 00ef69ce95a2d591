// Run `follow` of follow.js, a snippet of the guide: node run.mjs page|node FOLDER
//
// For a page, FOLDER gets bundle.js, which puts what arrives into `seen`. In Node each message
// is printed, a line each.

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const [where, folder] = process.argv.slice(2);
const outfile = join(folder, where === "page" ? "bundle.js" : "bundle.mjs");
const handle = {
  page: "window.seen = []; follow('orders', (message) => window.seen.push(message.data.n))",
  node: "follow('orders', (message) => console.log(JSON.stringify(message)))",
};
await build({
  stdin: { contents: `import { follow } from "./follow.js"; ${handle[where]}`, resolveDir: folder },
  outfile,
  bundle: true,
  format: "esm",
  platform: where === "page" ? "browser" : "node",
  logLevel: "error",
  nodePaths: [join(here, "node_modules")],
});
if (where === "node") await import(outfile);
