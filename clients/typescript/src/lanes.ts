// One stream for all subscriptions, although each may begin elsewhere and come and go.
//
// A *lane* is a stream with a cursor for some of the subscriptions. A new subscription gets a
// lane of its own. There the broker says whether it accepts the filters, and where `latest` is;
// there it catches up, if it asked for what is older. Once it is level with the main lane it is
// moved over: the main lane is opened again, where it was, with the filters of both.
//
//     main lane            ──o──o──────o──┬──o──o──▶
//     a new subscription     ──o──o──o──o─┘
//
// What comes twice by that is dropped where it is heard (subscriptions.ts): each subscription
// knows where it is. A lane that is quiet learns from a heartbeat how far it is (15 s).
//
// If the broker refuses a lane, each of its subscriptions gets one of its own again. The one that
// is refused then is at fault; the others meet in a main lane, where they were. One that is
// accepted alone but not with the others is one too many: a stream has at most 128 filters.

import type { Block } from "./blocks.js";
import { now } from "./clock.js";
import { distance, isId } from "./cursor.js";
import type { ReplBrokerError } from "./errors.js";
import type { Http } from "./http.js";
import type { HeldStreams, Post, Wish } from "./posts.js";
import { makeStream, type Stream } from "./stream.js";

interface Member extends Wish {
  lane?: Lane | undefined;
  /** For how long it was not to be joined to others after the last time that this was in vain, in ms. */
  apart?: number;
  apartUntil?: number;
  /** It was refused in company, and not accepted in any since. */
  isSuspect?: boolean;
}

interface Lane extends Stream {
  cursor: string;
  /** Those that the stream was opened with, as in its URL. */
  filters: string;
  /** Members of another lane were moved here, and nothing has come since. */
  isJoined?: boolean;
  hasWorked?: boolean;
  /** The cursor is one that the broker gave, and not only what it was asked for. */
  isProven?: boolean;
}

const LANES_MAX = 4; // over HTTP/1.1 a browser has six connections to a host
const NEAR = 1000; // messages that are rather asked for again than to have another lane
const APART_MS = 500; // and twice that with each time
const SETTLE_MS = 20; // subscriptions that are made together move together

/** The streams of one client, or of all tabs. */
export function makeLanes(
  http: Http,
  openTimeout: number,
  silenceTimeout: number,
  post: (post: Post) => void,
): HeldStreams {
  const all = new Map<string, Member>();
  let lanes: Lane[] = []; // the first is the main one
  let wasOpen = false;

  const members = (lane?: Lane): Member[] => [...all.values()].filter((member) => member.lane === lane);
  const filtersOf = (lane: Lane): string =>
    [...new Set(members(lane).flatMap(({ filters }) => filters))].map((each) => `&topic=${encodeURIComponent(each)}`).join("");

  function want(wishes: Wish[]): void {
    for (const wish of wishes) all.set(wish.key, { ...wish });
    settle(0);
  }

  function drop(prefix: string): void {
    for (const key of all.keys()) if (key.startsWith(prefix)) all.delete(key);
    settle(SETTLE_MS);
  }

  function tell(error?: ReplBrokerError): void {
    const state = !all.size ? "idle" : lanes[0]?.isOpen() ? "live" : wasOpen ? "reconnecting" : "connecting";
    post({ state, error: error && { ...error } });
  }

  /** Soon see to it that everybody is in the right lane. */
  function settle(ms: number): void {
    setTimeout(() => {
      const [main] = tidy();
      const level = lanes.filter((lane) => main && isLevel(lane, main));
      for (const lane of level[0] ? [main!, ...level] : []) {
        for (const member of members(lane)) {
          member.lane = main;
          member.after = lane.cursor; // to come back to
        }
        if (distance(lane.cursor, main!.cursor) < 0) main!.cursor = lane.cursor;
        main!.isJoined = true;
        main!.filters = ""; // to be opened again
      }
      for (const member of members()) house(member);
      for (const lane of tidy()) if (lane.filters !== filtersOf(lane)) lane.start();
      tell();
    }, ms);
  }

  /** Close lanes that nobody is in. */
  function tidy(): Lane[] {
    return (lanes = lanes.filter((lane) => members(lane).length || lane.stop()));
  }

  /** Whether `lane` may be moved over. */
  function isLevel(lane: Lane, main: Lane): boolean {
    const lead = distance(lane.cursor, main.cursor);
    return (
      lane !== main &&
      lane.isOpen() &&
      lead >= -NEAR &&
      (lane.isProven || lead <= 0) &&
      members(lane).every(({ apartUntil = 0 }) => now() > apartUntil)
    );
  }

  /** A lane for one without: with others that begin at the same place. It waits if there are too many. */
  function house(member: Member): void {
    const { after, isSuspect } = member;
    const found = lanes.find((lane) => !isSuspect && !lane.isProven && lane.cursor === after);
    member.lane = found ?? (lanes[LANES_MAX - 1] ? undefined : open(after));
  }

  function open(cursor: string): Lane {
    const query = (): string => `after=${encodeURIComponent(lane.cursor)}${(lane.filters = filtersOf(lane))}`;
    const stream = makeStream(
      http,
      openTimeout,
      silenceTimeout,
      query,
      (block) => onBlock(lane, block),
      (error, failures) => (failures ? lost(lane, error, failures) : refused(lane, error)),
    );
    const lane: Lane = { ...stream, cursor, filters: "" };
    lanes.push(lane);
    return lane;
  }

  function onBlock(lane: Lane, block: Block): void {
    const [main] = lanes as [Lane];
    const isSubscribed = block.event === "subscribed";
    lane.isProven ||= !isSubscribed || !isId(lane.cursor);
    const found = members(lane);
    if (lane.isJoined && block.event === "gap" && !lanes[LANES_MAX - 2]) {
      split(found);
      return;
    }
    lane.isJoined &&= isSubscribed;
    if (isId(block.id)) lane.cursor = block.id;
    post({ to: found.map(({ key }) => key), block });
    if (isSubscribed) {
      lane.hasWorked = wasOpen = true;
      if (found[1]) for (const member of found) member.isSuspect = false;
      if (lane === main) tell();
    }
    if (lanes.some((other) => isLevel(other, main))) settle(SETTLE_MS);
  }

  /** Joining them made a gap, which says nothing of each: they are to hear of their own. */
  function split(found: Member[]): void {
    for (const member of found) {
      member.lane = undefined;
      member.apart = 2 * (member.apart ?? APART_MS);
      member.apartUntil = now() + member.apart;
    }
    settle(0);
  }

  function lost(lane: Lane, error: ReplBrokerError, failures: number): void {
    if (lane === lanes[0]) tell(error);
    // An outage is told by the state. What has never worked is a mistake: an error, once.
    if (!lane.hasWorked && failures === http.urls.length) post({ error: { ...error } });
  }

  function refused(lane: Lane, error: ReplBrokerError): void {
    const found = members(lane);
    const culprit = found[1] ? found.findLast(({ isSuspect }) => isSuspect) : found[0];
    lane.filters = ""; // whoever stays in it: it is to be opened again
    if (culprit) {
      all.delete(culprit.key);
      post({ to: [culprit.key], error: { ...error } });
    } else {
      for (const member of found) {
        member.lane = undefined;
        member.isSuspect = true;
        if (isId(lane.cursor)) member.after = lane.cursor;
      }
    }
    settle(SETTLE_MS);
  }

  return {
    want,
    drop,
    wake(certain) {
      lanes.forEach((lane) => lane.wake(certain));
      tell();
    },
    poke() {
      lanes.forEach((lane) => lane.look());
      tell();
    },
    close() {
      post = () => {};
      all.clear();
      lanes.forEach((lane) => lane.stop());
    },
  };
}
