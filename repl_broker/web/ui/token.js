// The token that the page's calls and streams carry. It stays in this tab, and goes with it.

import { $, say } from "./format.js";

const KEY = "repl-broker-token";

let held = recall();
let asking = null; // the question under way, for everyone who needs its answer

function recall() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is off: it holds until the page is left
  }
}

function keep(token) {
  held = token;
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    // as above
  }
}

/** The header fields that carry it; none without one. */
export const authorization = () => (held ? { Authorization: `Bearer ${held}` } : {});

/** Ask for another one, since the node refused `used`. False: there is none to be had. */
export function askToken(problem, used) {
  if (authorization().Authorization !== used.Authorization) return Promise.resolve(true); // given meanwhile
  asking ??= ask(problem).finally(() => (asking = null));
  return asking;
}

function ask(problem) {
  const dialog = $("token");
  const input = $("token-value");
  say($("token-why"), problem.message);
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const token = input.value.replace(/[^!-~]/g, ""); // no header has others
      input.value = ""; // it need not stay in the page
      const given = dialog.returnValue === "use" && token !== "";
      if (given) keep(token);
      resolve(given);
    }, { once: true });
  });
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("token").close("use");
});
$("token-close").addEventListener("click", () => $("token").close());
