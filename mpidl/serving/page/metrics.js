// Figures from the server's counters. Nothing here touches the page.

/** Samples of Prometheus' text format: name -> [{labels, value}]. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, key, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = value;
    }
    const value = match[3] === "+Inf" ? Infinity : Number(match[3]);
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value });
  }
  return found;
}

/** A metric without labels. */
export function single(metrics, name) {
  return metrics.get(name)?.[0]?.value ?? 0;
}

/** What was added to counters; all of it where they began anew (the model was loaded again). */
export function added(now, before) {
  if (!before || now.some((value, k) => value < before[k])) return now;
  return now.map((value, k) => value - before[k]);
}

/**
 * A percentile of a histogram, linear between two limits; null where it is empty.
 * @param limits Upper limits, ascending; the last one is Infinity.
 * @param totals How many did not exceed each limit.
 */
export function percentile(limits, totals, share) {
  const count = totals.at(-1);
  if (!count) return null;
  const rank = share * count;
  const k = totals.findIndex((total) => total >= rank);
  const low = k ? limits[k - 1] : 0;
  if (limits[k] === Infinity) return low;
  const before = k ? totals[k - 1] : 0;
  return low + ((limits[k] - low) * (rank - before)) / Math.max(totals[k] - before, 1);
}

/** Elementwise sum of lists of equal length. */
export function sum(lists) {
  return lists.reduce((total, list) => list.map((value, k) => value + (total[k] ?? 0)), []);
}

/** A number in few characters. */
export function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

/** A number of bytes with its unit. */
export function bytes(value) {
  const power = value < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(value) / 10));
  return `${short(value / 1024 ** power)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** Whether numbers are the probabilities of a row. */
export function areProbabilities(row) {
  const total = row.reduce((a, b) => a + b, 0);
  return row.length > 1 && row.every((p) => p >= 0 && p <= 1.0001) && Math.abs(total - 1) < 1e-2;
}
