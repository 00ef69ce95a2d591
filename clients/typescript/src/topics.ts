import type { Http } from "./http.js";

/** How much history a topic keeps; the limit that is reached first counts. */
export interface Retention {
  messages: number;
  seconds: number;
  bytes: number;
  /**
   * Unused for this long, the topic is deleted: nothing was published to it, and no event stream
   * followed it. `null`: never.
   */
  idle_seconds: number | null;
}

/** A topic: its settings, and what it retains now. */
export interface Topic {
  name: string;
  retention: Retention;
  messages: number;
  bytes: number;
  first_id: string | null;
  last_id: string | null;
  created_at: string;
  /** On the node that answered. */
  subscribers: number;
}

/** A page of topics. */
export interface TopicPage {
  topics: Topic[];
  /** `after` of the next page; null if there is none. */
  next: string | null;
}

/** Settings of a topic. What is left out is as the operator configured it. */
export interface TopicSettings {
  retention?: Partial<Retention>;
}

/** What can be done with topics. Refusals reject with a {@link ProblemError}. */
export interface Topics {
  /** A page of topics, in name order, of those that `match` a filter. */
  list(options?: { match?: string; after?: string; limit?: number; signal?: AbortSignal }): Promise<TopicPage>;
  /** A topic as it is now; `topic_not_found` if there is none. */
  get(name: string): Promise<Topic>;
  /**
   * Create a topic; `topic_exists` if it is there, which an earlier try whose answer was lost may
   * have caused. `put` cannot be mistaken so.
   */
  create(name: string, settings?: TopicSettings): Promise<Topic>;
  /** Create a topic, or change its settings. */
  put(name: string, settings?: TopicSettings): Promise<Topic>;
  /** Remove a topic and its history; `topic_not_found`, as with `create`, may mean that it was done. */
  delete(name: string): Promise<void>;
  /**
   * Remove all topics that `match` a filter, with their history: how many. They go in pieces; if it
   * rejects, some may have gone, and the same call removes the rest.
   */
  deleteMatching(match: string): Promise<number>;
}

export const topicPath = (name: string): string => `/v1/topics/${encodeURIComponent(name)}`;

/** `?a=1&b=2` of what is given. */
export const query = (options: object): string =>
  `?${new URLSearchParams(JSON.parse(JSON.stringify(options)))}`;

export const topicsOf = ({ call }: Http): Topics => ({
  list: ({ signal, ...options } = {}) => call("GET", `/v1/topics${query(options)}`, signal),
  get: (name) => call("GET", topicPath(name)),
  create: (name, settings) => call("POST", "/v1/topics", undefined, { name, ...settings }),
  put: (name, settings = {}) => call("PUT", topicPath(name), undefined, settings),
  delete: (name) => call("DELETE", topicPath(name)),
  deleteMatching: (match) =>
    // In quotes: the build gives a property of the client's own that has this name a short one.
    call<Record<"count", number>>("DELETE", `/v1/topics${query({ match })}`).then((answer) => answer["count"]),
});
