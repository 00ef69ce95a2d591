// Members of the cluster, and a log of what happens to them.

import { $, clock, count, make, say } from "./format.js";

const ENTRIES_MAX = 100;

export class Activity {
  /** Add a line to the log, which a screen reader reads out. */
  note(text, kind = "plain") {
    const now = new Date();
    const time = make("time", { dateTime: now.toISOString() }, clock(now));
    $("activity").prepend(make("li", { className: kind }, time, make("span", {}, text)));
    while ($("activity").children.length > ENTRIES_MAX) $("activity").lastChild.remove();
    $("activity-empty").hidden = true;
  }
}

/** What happened between two states of the cluster, as [text, kind] lines. */
export function changes(before, now) {
  if (!before) return [];
  const lines = [];
  const members = new Map(before.members.map((member) => [member.id, member]));
  if (before.leader !== now.leader || (now.leader && before.term !== now.term)) {
    const was = before.leader && before.leader !== now.leader ? `, after ${before.leader}` : "";
    if (!now.leader) lines.push([`No leader: ${before.leader} is not followed any more`, "bad"]);
    else if (before.leader === now.leader) lines.push([`${now.leader} was elected again, term ${now.term}`, "news"]);
    else lines.push([`${now.leader} leads now, in term ${now.term}${was}`, "news"]);
  }
  for (const member of now.members) {
    const old = members.get(member.id);
    members.delete(member.id);
    if (!old) lines.push([`${member.id} was added as a ${member.role}`, "news"]);
    else if (old.role === "learner" && member.role !== "learner") lines.push([`${member.id} has a vote now`, "good"]);
    if (old && old.reachable !== member.reachable) {
      if (member.reachable) lines.push([`${member.id} can be reached again`, "good"]);
      else lines.push([`${member.id} cannot be reached`, "bad"]);
    }
  }
  for (const id of members.keys()) lines.push([`${id} was removed`, "news"]);
  return lines;
}

export class Cluster {
  #rows = new Map();

  show(cluster, node) {
    const health = healthOf(cluster, node);
    say($("cluster-health"), health.text);
    $("cluster-health").className = `pill ${health.kind}`;
    say($("node-name"), cluster.node);
    say($("cluster-term"), count(cluster.term));
    say($("cluster-leader"), cluster.leader ?? "none");
    say($("cluster-commit"), count(cluster.commit_index));
    say($("cluster-applied"), count(cluster.applied_index));
    say($("cluster-id"), cluster.cluster_id.slice(0, 8));
    $("cluster-id").title = cluster.cluster_id;
    say($("cluster-epoch"), cluster.epoch);
    const gone = new Set(this.#rows.keys());
    for (const member of cluster.members) {
      gone.delete(member.id);
      this.#showMember(member, cluster);
    }
    for (const id of gone) {
      this.#rows.get(id).row.remove();
      this.#rows.delete(id);
    }
  }

  #showMember(member, cluster) {
    const cells = this.#rows.get(member.id) ?? this.#addRow(member.id);
    const isLeader = member.id === cluster.leader;
    const role = isLeader ? "leader" : member.role === "leader" ? "voter" : member.role;
    cells.row.classList.toggle("leads", isLeader);
    say(cells.role, role);
    cells.role.className = `pill ${isLeader ? "news" : "plain"}`;
    say(cells.state, member.reachable ? "reachable" : "unreachable");
    cells.state.className = `state ${member.reachable ? "good" : "bad"}`;
    say(cells.match, count(member.match_index));
    say(cells.lag, member.lag === null ? "–" : member.lag === 0 ? "level" : `${count(member.lag)} behind`);
    say(cells.here, member.id === cluster.node ? "this node" : "");
    // The address comes from whoever added the member: nothing but a web page is a link.
    const isWeb = /^https?:\/\//i.test(member.http_url);
    say(cells.link, member.http_url.replace(/^https?:\/\//i, ""));
    if (isWeb) cells.link.href = `${member.http_url.replace(/\/+$/, "")}/ui/`;
    else cells.link.removeAttribute("href");
  }

  #addRow(id) {
    const cells = {
      role: make("span", { className: "pill plain" }),
      state: make("span"),
      match: make("td", { className: "number" }),
      lag: make("td", { className: "number" }),
      here: make("small"),
      link: make("a", { rel: "noreferrer" }),
    };
    cells.row = make(
      "tr",
      {},
      make("th", { scope: "row" }, make("span", {}, id), " ", cells.here),
      make("td", {}, cells.role),
      make("td", {}, cells.state),
      cells.match,
      cells.lag,
      make("td", { className: "address" }, cells.link),
    );
    $("members").append(cells.row);
    this.#rows.set(id, cells);
    return cells;
  }
}

function healthOf(cluster, node) {
  const away = cluster.members.filter((member) => !member.reachable);
  if (!cluster.leader) return { text: "No leader", kind: "bad" };
  if (!node.ready) return { text: "Not ready", kind: "warn" };
  if (cluster.mode === "single") return { text: "Single node", kind: "good" };
  if (away.length) return { text: `${away.map(({ id }) => id).join(", ")} unreachable`, kind: "warn" };
  return { text: `All ${cluster.members.length} nodes up`, kind: "good" };
}
