import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/*.test.ts"],
    testTimeout: 30_000,
    hookTimeout: 30_000,
    maxWorkers: 3, // they wait more than they work
    // What nobody handles fails the run, whichever test it came from.
    dangerouslyIgnoreUnhandledErrors: false,
  },
});
