// From what anyone may have published to what the page shows.
//
// A topic takes any JSON value from anyone, so nothing about a message's `data`
// is certain: not that it is an object, not that its members are there, not their
// types or sizes. Everything is checked and cut here, once; the rest of the page
// can rely on it. It still shows it as text only, never as HTML.

export const NAME_CHARACTERS_MAX = 40;
export const TEXT_CHARACTERS_MAX = 2000;

const SHOWN_CHARACTERS_MAX = 4000; // of a message that something else than this page has sent
const SHOWN_LINES_MAX = 60;
const NOBODY = "Anonymous";

// Characters that would break a line or turn the text around them (U+202E and the like).
const LINE_CONTROLS = /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069\uFEFF]/gu;
// Within a message's own block they do no harm, and right-to-left text needs them.
const TEXT_CONTROLS = /(?![\n\t])[\p{Cc}\p{Cs}]/gu;
const VISIBLE = /[\p{L}\p{N}\p{P}\p{S}]/u;

/** A message of the API as an entry of a conversation; null if it is none. */
export function toEntry(message) {
  if (typeof message?.id !== "string" || typeof message.topic !== "string") return null;
  const data = message.data;
  const isObject = typeof data === "object" && data !== null && !Array.isArray(data);
  return {
    kind: "message",
    id: message.id,
    topic: message.topic,
    time: toTime(message.time),
    name: cleanName(isObject ? data.name : "") || NOBODY,
    window: isObject && typeof data.window === "string" ? data.window.slice(0, 64) : "",
    uuid: isObject && typeof data.uuid === "string" ? data.uuid.slice(0, 64) : "",
    ...shownText(isObject ? data.text : data, data),
  };
}

/** What to show of a message: `text`, and in `cut` how much of it is not shown. */
function shownText(text, data) {
  // What is not a chat message is shown as the JSON that it is.
  const whole = typeof text === "string" ? text : JSON.stringify(data) ?? "";
  const shown = whole
    .slice(0, SHOWN_CHARACTERS_MAX)
    .split("\n", SHOWN_LINES_MAX)
    .join("\n")
    .replace(TEXT_CONTROLS, "\uFFFD");
  return { text: shown, cut: whole.length - shown.length };
}

/** A name in one line, without white space around it; "" if nothing of it can be seen. */
export function cleanName(name) {
  if (typeof name !== "string") return "";
  const line = name.slice(0, 400).replace(LINE_CONTROLS, " ").replace(/\s+/g, " ").trim();
  return VISIBLE.test(line) ? [...line].slice(0, NAME_CHARACTERS_MAX).join("").trim() : "";
}

/** A Date, or null. */
function toTime(text) {
  const time = new Date(typeof text === "string" ? text : NaN);
  return Number.isNaN(time.getTime()) ? null : time;
}

/** One or two letters for an avatar. */
export function initials(name) {
  const words = name.split(/[\s._-]+/).filter((word) => VISIBLE.test(word));
  return words.slice(0, 2).map(firstCharacter).join("").toUpperCase() || "?";
}

function firstCharacter(word) {
  if (!Intl.Segmenter) return [...word][0];
  const [first] = new Intl.Segmenter().segment(word);
  return first.segment.slice(0, 8); // an accent may be stacked a thousand times
}

/** A hue for a name, the same in every window. */
export function hue(name) {
  let hash = 0x811c9dc5; // FNV-1a: close names get distant colours
  for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return (((hash ^ (hash >>> 12)) >>> 0) % 24) * 15;
}
