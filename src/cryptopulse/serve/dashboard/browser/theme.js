// Dark, light, or as the system is; and the colours of the style sheet for what draws itself.

const KEY = "cryptopulse.theme";
const CHOICES = ["auto", "dark", "light"];
const watchers = new Set();
const system = matchMedia("(prefers-color-scheme: dark)");

export function choice() {
  try {
    const stored = localStorage.getItem(KEY);
    return CHOICES.includes(stored) ? stored : "auto";
  } catch {
    return "auto";
  }
}

export function isDark() {
  return choice() === "dark" || (choice() === "auto" && system.matches);
}

export function choose(next) {
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // without storage it stays as the system is
  }
  apply();
}

export function next() {
  choose(CHOICES[(CHOICES.indexOf(choice()) + 1) % CHOICES.length]);
}

// Calls `watcher()` when the colours change.
export function onTheme(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

// A colour of the style sheet by its name, as in token("up").
export function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--cp-${name}`).trim();
}

export function apply() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  document.querySelector('meta[name="theme-color"]')?.setAttribute("content", token("bar"));
  if (typeof setDark === "function") setDark(isDark()); // Quasar's own parts
  for (const watcher of watchers) watcher();
}

system.addEventListener("change", apply);
