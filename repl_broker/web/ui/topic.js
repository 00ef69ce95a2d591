// One topic: its figures, its tail, and what can be done to it.

import { call, uuid } from "./stream.js";
import { $, bytes, count, make, period, plural, rate, say } from "./format.js";
import { Tail } from "./tail.js";

const NAME = /^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/;
const LIMITS = ["messages", "seconds", "bytes"];
const SETTINGS = [...LIMITS, "idle_seconds"];

/** Whether the node could have a topic of this name: what else an address says is ignored. */
export function isName(text) {
  return NAME.test(text) && text.length <= 255;
}

export class TopicPanel {
  name = "";
  defaults = {}; // what a topic keeps that does not say otherwise
  #topic = null;
  #tail = new Tail();
  #started = false;
  #agreed = ""; // limits of which the user knows what they may cost

  constructor() {
    $("publish-form").addEventListener("submit", (event) => this.#publish(event));
    $("publish-data").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("publish-form").requestSubmit();
    });
    $("tail-from").addEventListener("change", () => this.#follow());
    $("topic-edit").addEventListener("click", () => this.#openSettings(this.#topic));
    $("topic-delete").addEventListener("click", () => this.#openDelete());
    $("new-topic").addEventListener("click", () => this.#openSettings(null));
    $("settings-form").addEventListener("submit", (event) => this.#saveSettings(event));
    $("delete-form").addEventListener("submit", (event) => this.#delete(event));
    for (const button of document.querySelectorAll("dialog button[data-close]")) {
      button.addEventListener("click", () => button.closest("dialog").close());
    }
  }

  /** Show a topic; "" closes the panel. */
  open(name) {
    if (name === this.name) return;
    this.name = name;
    this.#topic = null;
    this.#started = false;
    this.#tail.stop();
    $("topic-edit").disabled = $("topic-delete").disabled = true; // until the feed has told of it
    $("topic-panel").hidden = !name;
    $("topics-page").classList.toggle("has-topic", Boolean(name));
    if (!name) return;
    say($("topic-name"), name);
    say($("publish-result"), "");
    for (const fact of document.querySelectorAll("#topic-facts dd")) say(fact, "–");
    $("topic-name").focus({ preventScroll: true });
  }

  /** Let go of the tail's stream; what is shown stays. */
  sleep() {
    this.#tail.stop();
  }

  /** Go on: the tail begins anew, unless it was being read. */
  wake() {
    if (this.name && !this.#tail.isPaused) this.#started = false;
  }

  /** What the feed says of the topic; null if there is none. */
  show(topic) {
    if (!this.name || (topic && topic.name !== this.name)) return;
    this.#topic = topic;
    $("topic-missing").hidden = topic !== null;
    $("topic-edit").disabled = $("topic-delete").disabled = topic === null;
    if (topic) this.#showFacts(topic);
    if (!this.#started) this.#follow();
  }

  #showFacts(topic) {
    const { retention } = topic;
    say($("fact-rate"), `${rate(topic.rate)}/s`);
    say($("fact-messages"), count(topic.messages));
    say($("fact-bytes"), bytes(topic.bytes));
    say($("fact-subscribers"), count(topic.subscribers));
    say($("fact-first"), topic.first_id ?? "–");
    say($("fact-last"), topic.last_id ?? "–");
    say($("fact-created"), topic.created_at.slice(0, 16).replace("T", " "));
    const kept = `${plural(retention.messages, "message")}, ${period(retention.seconds)}, ${bytes(retention.bytes)}`;
    const idle = retention.idle_seconds;
    say($("fact-retention"), idle === null ? kept : `${kept}; deleted when unused for ${period(idle)}`);
  }

  #follow() {
    this.#started = true;
    const from = $("tail-from").value;
    this.#tail.start(this.name, from === "recent" ? this.#topic?.tail_after ?? "earliest" : from);
  }

  async #publish(event) {
    event.preventDefault();
    const result = $("publish-result");
    const began = performance.now();
    await doing($("publish-form"), result, async () => {
      const path = `topics/${this.name}/messages`;
      const { id } = await call("POST", path, $("publish-data").value, { "Idempotency-Key": uuid() });
      result.className = "result good";
      say(result, `Published as ${id}, on disk after ${(performance.now() - began).toFixed(0)} ms`);
    });
  }

  // --- dialogs ---

  #openSettings(topic) {
    const isNew = topic === null;
    say($("settings-title"), isNew ? "New topic" : `Change ${topic.name}`);
    say($("settings-submit"), isNew ? "Create" : "Save");
    $("settings-name-field").hidden = !isNew;
    $("settings-name").value = "";
    for (const limit of SETTINGS) {
      const field = $(`settings-${limit}`);
      field.value = topic?.own[limit] ?? "";
      field.placeholder = `${this.defaults[limit] ?? (limit === "idle_seconds" ? "never" : "")} (the default)`;
    }
    this.#show($("settings"), $("settings-error"));
    $("settings").dataset.topic = topic?.name ?? "";
    this.#agreed = "";
    (isNew ? $("settings-name") : $("settings-messages")).focus();
  }

  async #saveSettings(event) {
    event.preventDefault();
    const error = $("settings-error");
    const changed = $("settings").dataset.topic;
    const retention = {};
    for (const limit of SETTINGS) {
      const { value, validity } = $(`settings-${limit}`);
      if (validity.badInput) {
        refuse(error, "Not a number", `What is set for ${limit.replace("_", " ")} is a whole number.`);
        return;
      }
      if (value !== "") retention[limit] = Number(value);
    }
    if (changed && this.#isLess(retention) && this.#agreed !== JSON.stringify(retention)) {
      this.#agreed = JSON.stringify(retention);
      refuse(error, "Less will be kept.", "What is beyond the new limits goes at once, for good. Save again to do so.");
      return;
    }
    await doing($("settings-form"), error, async () => {
      if (changed) {
        await call("PUT", `topics/${changed}`, JSON.stringify({ retention }));
      } else {
        const { name } = await call("POST", "topics", JSON.stringify({ name: $("settings-name").value, retention }));
        location.hash = `topics/${name}`;
      }
      $("settings").close();
    });
  }

  #isLess(retention) {
    const before = this.#topic?.retention;
    return before && LIMITS.some((limit) => (retention[limit] ?? this.defaults[limit]) < before[limit]);
  }

  #openDelete() {
    const { name, messages } = this.#topic;
    $("delete").dataset.topic = name;
    say($("delete-what"), `${name}, with ${plural(messages, "message")}`);
    say($("delete-hint"), name);
    $("delete-name").value = "";
    this.#show($("delete"), $("delete-error"));
    $("delete-name").focus();
  }

  async #delete(event) {
    event.preventDefault();
    const name = $("delete").dataset.topic;
    const error = $("delete-error");
    if ($("delete-name").value !== name) {
      refuse(error, "The name differs", `Write ${name} to delete it.`);
      return;
    }
    await doing($("delete-form"), error, async () => {
      await call("DELETE", `topics/${name}`);
      $("delete").close();
      location.hash = "topics";
    });
  }

  #show(dialog, error) {
    say(error, "");
    dialog.showModal();
  }
}

/** Do something once: its button waits, and what goes wrong is said in the node's words. */
async function doing(form, message, action) {
  const button = form.querySelector("button[type=submit]");
  if (button.disabled) return;
  button.disabled = true;
  message.replaceChildren();
  try {
    await action();
  } catch (problem) {
    refuse(message, problem.title ?? "It did not work", problem.message);
  } finally {
    button.disabled = false;
  }
}

function refuse(message, title, detail) {
  message.className = "result bad";
  message.replaceChildren(make("strong", {}, title), " ", make("span", {}, detail));
}
