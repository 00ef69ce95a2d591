// Bundle an application of one framework, as its own tools would: node build.mjs FOLDER CLIENT_URL
//
// FOLDER has App.{jsx,vue,svelte} and messages.js, from the guide. It gets bundle.js, which
// mounts App and puts `show(filter)` and `unmount()` on the window.

import { readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { compile as compileSvelte } from "svelte/compiler";
import { compileScript, parse } from "vue/compiler-sfc";

const here = dirname(fileURLToPath(import.meta.url));
const [folder, clientUrl] = process.argv.slice(2);
const framework = folder.split("/").at(-1);

const mains = {
  react: `
    import { createElement, StrictMode } from "react";
    import { createRoot } from "react-dom/client";
    import App from "./App.jsx";
    const root = createRoot(document.body);
    window.show = (filter) => root.render(createElement(StrictMode, null, createElement(App, { filter })));
    window.unmount = () => root.unmount();`,
  vue: `
    import { createApp, h, ref } from "vue";
    import App from "./App.vue";
    const filter = ref();
    const app = createApp({ render: () => h(App, { filter: filter.value }) });
    let isMounted = false;
    window.show = (wanted) => {
      filter.value = wanted;
      if (!isMounted) app.mount(document.body);
      isMounted = true;
    };
    window.unmount = () => app.unmount();`,
  svelte: `
    import { mount, unmount } from "svelte";
    import Show from "./Show.svelte";
    const app = mount(Show, { target: document.body });
    window.show = (filter) => app.show(filter);
    window.unmount = () => unmount(app);`,
};

await writeFile(join(folder, "main.js"), mains[framework]);
await writeFile(
  join(folder, "Show.svelte"),
  `<script>import App from "./App.svelte"; let filter = $state();
   export function show(wanted) { filter = wanted; }</script>{#if filter}<App {filter} />{/if}`,
);

const guide = {
  name: "guide",
  setup({ onLoad, onResolve }) {
    onResolve({ filter: /^repl-broker$/ }, () => ({ path: clientUrl, external: true }));
    onLoad({ filter: /\.svelte$/ }, async ({ path }) => ({
      contents: compileSvelte(await readFile(path, "utf8"), { filename: path }).js.code,
    }));
    onLoad({ filter: /\.vue$/ }, async ({ path }) => ({
      contents: compileScript(parse(await readFile(path, "utf8")).descriptor, { id: "app", inlineTemplate: true })
        .content,
    }));
  },
};

await build({
  entryPoints: [join(folder, "main.js")],
  outfile: join(folder, "bundle.js"),
  bundle: true,
  format: "esm",
  jsx: "automatic",
  logLevel: "error",
  nodePaths: [join(here, "node_modules")],
  define: {
    "process.env.NODE_ENV": '"development"',
    __VUE_OPTIONS_API__: "true",
    __VUE_PROD_DEVTOOLS__: "false",
    __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false",
  },
  plugins: [guide],
});
