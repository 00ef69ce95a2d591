// What a later build may be: one with more code in it, which uses some internal names more often
// than others, and has one that the present build lacks.

import type { Wish } from "../src/posts.js";

export * from "../src/index.js";

export const later = (wish: Wish & { unheard?: unknown }, posts: Record<string, unknown>[]) =>
  posts.map(({ url, wishes, lane, look, poke }) => [url, wishes, lane, look, poke, wish.unheard, wish.key]);
