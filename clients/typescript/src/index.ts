/**
 * The client of repl-broker: subscribe to topics over one event stream that never silently stops,
 * and publish so that nothing is lost and nothing is there twice.
 *
 * @packageDocumentation
 */
export { type Client, type ClientOptions, connect, type HistoryOptions, type HistoryPage } from "./client.js";
export { ConnectionError, ProblemError, ReplBrokerError } from "./errors.js";
export type { Token } from "./http.js";
export type { MessagesOptions } from "./messages.js";
export type { PublishOptions } from "./publish.js";
export type { Retention, Topic, TopicPage, TopicSettings, Topics } from "./topics.js";
export type {
  ClientEvents,
  Gap,
  Message,
  Receipt,
  State,
  StateEvent,
  SubscribeOptions,
  Subscription,
  TopicDeleted,
} from "./types.js";
