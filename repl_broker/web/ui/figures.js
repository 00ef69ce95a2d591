// From counters to rates and quantiles. Pure: nothing here knows of the page.

const POINTS_MAX = 300;

/** A quantile of a histogram's increments, in seconds; null if nothing was counted. */
export function quantile(share, bounds, counts) {
  const total = counts.reduce((sum, each) => sum + each, 0);
  if (!total) return null;
  let below = 0;
  for (let i = 0; i < counts.length; i++) {
    if (below + counts[i] >= share * total) {
      const low = i ? bounds[i - 1] : 0;
      const high = bounds[i] ?? bounds.at(-1);
      return low + ((share * total - below) / counts[i]) * (high - low);
    }
    below += counts[i];
  }
  return bounds.at(-1);
}

/** What changed between two samples of one run of a node, a second; null if that cannot be said. */
export function between(before, now, bounds) {
  const seconds = before ? now.clock - before.clock : 0;
  if (seconds <= 0 || now.node.commands < before.node.commands) return null;
  const per = (name) => Math.max(0, now.node[name] - before.node[name]) / seconds;
  const counts = now.node.commit_buckets.map((each, i) => each - before.node.commit_buckets[i]);
  const commands = now.node.commands - before.node.commands;
  return {
    published: per("seq"), // of the cluster, through any node
    delivered: per("deliveries"),
    commands: per("commands"),
    writes: per("writes"),
    half: quantile(0.5, bounds, counts),
    most: quantile(0.99, bounds, counts),
    mean: commands ? (now.node.commit_seconds - before.node.commit_seconds) / commands : null,
  };
}

/** The last minutes, as columns for the charts. */
export class Series {
  time = [];
  columns = { published: [], delivered: [], half: [], most: [] };

  /** A point; null figures leave a gap in the lines. */
  add(seconds, figures) {
    if (seconds <= this.time.at(-1)) return;
    this.time.push(seconds);
    for (const [name, column] of Object.entries(this.columns)) column.push(figures?.[name] ?? null);
    if (this.time.length > POINTS_MAX) {
      this.time.shift();
      for (const column of Object.values(this.columns)) column.shift();
    }
  }
}
