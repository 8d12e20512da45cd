// The theme (dark, light, or the system's), and the style sheet's colours for charts.

import { readStorage, writeStorage } from "./dom.js";

const KEY = "cryptopulse.theme";
const CHOICES = ["auto", "dark", "light"];
const watchers = new Set();
const system = matchMedia("(prefers-color-scheme: dark)");
export let themeChoice = CHOICES.includes(readStorage(KEY)) ? readStorage(KEY) : "auto";

export function nextTheme() {
  themeChoice = CHOICES[(CHOICES.indexOf(themeChoice) + 1) % CHOICES.length];
  writeStorage(KEY, themeChoice);
  applyTheme();
}

// Calls `watcher()` when the colours change.
export function onTheme(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

// A colour of the style sheet by name, such as token("up").
export function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--cp-${name}`).trim();
}

export function applyTheme() {
  const isDark = themeChoice === "dark" || (themeChoice === "auto" && system.matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  document.querySelector('meta[name="theme-color"]')?.setAttribute("content", token("bar"));
  if (typeof setDark === "function") setDark(isDark); // for Quasar's components
  for (const watcher of watchers) watcher();
}

system.addEventListener("change", applyTheme);
