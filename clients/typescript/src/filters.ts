// Filters: a topic's name, or a pattern in which `*` is one token and a last `>` one or more.

/** Whether a topic is one of these. A filter that is not valid matches whatever; the broker says so. */
export function matcher(filters: readonly string[]): (topic: string) => boolean {
  const wildcards: Record<string, string> = { "*": "[^.]+", ">": ".+" };
  const patterns = filters.map((filter) => filter.replace(/[^\w-]/g, (sign) => wildcards[sign] ?? `\\${sign}`));
  const pattern = new RegExp(`^(?:${patterns.join("|")})$`);
  return (topic) => pattern.test(topic);
}
