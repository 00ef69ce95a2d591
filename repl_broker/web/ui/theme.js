// Before the page is drawn: the theme that was chosen here last. "auto" follows the system.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("repl-broker-theme");
  } catch {
    // no storage in this window: the system's choice it is
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
