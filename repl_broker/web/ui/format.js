// Numbers and times for people, and the two ways in which the page makes elements.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const NONE = "–";

export const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function count(value) {
  if (!known(value)) return NONE;
  return value < 100_000 ? WHOLE.format(value) : COMPACT.format(value);
}

export function rate(value) {
  if (!known(value)) return NONE;
  return value > 0 && value < 9.95 ? value.toFixed(1) : count(value);
}

export function bytes(value) {
  if (!known(value)) return NONE;
  let unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 100 || value % 1 < 0.05 ? 0 : 1;
  return `${value.toFixed(digits)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

/** Seconds, as milliseconds where they are few. */
export function latency(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  const ms = seconds * 1000;
  return `${ms.toFixed(ms < 1 ? 2 : ms < 100 ? 1 : 0)} ms`;
}

/** 86400 → "1 day". */
export function period(seconds) {
  if (!known(seconds)) return NONE;
  for (const [size, name] of [[86_400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (seconds >= size && seconds % size === 0) return plural(seconds / size, name);
  }
  return plural(seconds, "second");
}

export function plural(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

export function clock(date) {
  return [date.getHours(), date.getMinutes(), date.getSeconds()]
    .map((part) => String(part).padStart(2, "0"))
    .join(":");
}

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** Text of an element, touched only if it changes: a screen reader is told once. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** An element with properties and children; strings are text, whatever is in them. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}
