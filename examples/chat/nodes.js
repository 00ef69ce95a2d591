// Which nodes there are, and which of them this page's stream comes from.
//
// The client finds another node by itself; all it wants is the list. The rest here is for
// showing: the client does not say which node it is at, so the page's `fetch` is looked at. Windows
// of one browser share one stream (the client sees to that), so the one that has it tells
// the others.

const HERE = new URL("..", document.baseURI).href.replace(/\/$/, ""); // beside the page, behind any proxy
const ASK_MILLISECONDS_MAX = 5000;

export class Nodes {
  #names = new Map(); // by URL
  #channel = globalThis.BroadcastChannel ? new BroadcastChannel("repl-broker-chat") : null;
  #isHolder = false;
  #moved = () => {};
  urls = [HERE];
  current = ""; // the URL of the node that the stream comes from

  /** `moved()` is called when the stream has begun at a node, here or in the window that has it. */
  listen(moved) {
    this.#moved = moved;
    const plain = globalThis.fetch;
    globalThis.fetch = async (url, options) => this.#look(String(url), await plain(url, options));
    this.#channel?.addEventListener("message", ({ data }) => this.#heard(data));
    this.#channel?.postMessage({ ask: true });
  }

  get isCluster() {
    return this.urls.length > 1;
  }

  /** The node's name, or else where it is. */
  name(url = this.current) {
    return this.#names.get(url) ?? (url && new URL(url).host);
  }

  /** Ask this node for the others. */
  async find() {
    let cluster;
    try {
      const signal = AbortSignal.timeout(ASK_MILLISECONDS_MAX);
      cluster = await (await fetch(`${HERE}/v1/cluster`, { signal })).json();
    } catch {
      return; // then there is this one, and the client says what is wrong with it
    }
    this.#names.set(HERE, cluster.node);
    for (const { id, http_url: url } of cluster.members ?? []) {
      if (id === cluster.node || !isOnThisMachine(url)) continue;
      this.#names.set(url, id);
      this.urls.push(url);
    }
  }

  #look(url, response) {
    const [node, isStream] = url.split("/v1/events?");
    if (isStream && response.ok) {
      this.#isHolder = true;
      this.#at(node);
      this.#channel?.postMessage({ node });
    }
    return response;
  }

  #heard({ ask, node }) {
    if (ask && this.#isHolder && this.current) this.#channel.postMessage({ node: this.current });
    if (!node) return;
    this.#isHolder = false;
    this.#at(node);
  }

  #at(node) {
    this.current = node;
    this.#moved();
  }
}

// On several machines, name the nodes here and in the page's Content-Security-Policy, and this
// page's origin in their `[http] cors_origins`; or put one address before them all.
function isOnThisMachine(url) {
  return /^http:\/\/(127\.0\.0\.1|localhost):\d+$/.test(url) && location.protocol === "http:";
}

/** The URL of a room's messages, and of a stream, for showing. */
export const messagesUrl = (topic) => `${HERE}/v1/topics/${topic}/messages`;
export const streamUrl = (filter) => `${HERE}/v1/events?topic=${filter}`;
