// The header: state of the data, search, theme, time zone, shortcuts.

import { STALE_S, subscribe, watchState } from "./live.js";
import { age, onZone, setZone, zone, zoneName } from "./format.js";
import { apply, choice, next } from "./theme.js";

const WORDS = {
  live: "Live",
  stale: "Stale",
  disconnected: "Disconnected",
  loading: "Loading",
  empty: "No data yet",
  unreachable: "Can't be read",
  refused: "Can't be read",
};
const HINTS = {
  live: "New commits arrive as they are made",
  stale: `No commit for more than ${STALE_S} seconds: does the pipeline run?`,
  disconnected: "The server does not answer; this page tries again by itself",
  loading: "The newest data is being read",
  empty: "The lake holds no bars yet: start the pipeline with `cryptopulse run`",
};
const ICONS = {
  auto: '<svg viewBox="0 0 24 24"><circle cx="12" cy="12" r="8"/><path d="M12 4a8 8 0 0 1 0 16z" class="cp-fill"/></svg>',
  dark: '<svg viewBox="0 0 24 24"><path d="M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z"/></svg>',
  light:
    '<svg viewBox="0 0 24 24"><circle cx="12" cy="12" r="4"/><path d="M12 3v2m0 14v2M3 12h2m14 0h2M5.6 5.6 7 7m10 10 1.4 1.4M5.6 18.4 7 17M17 7l1.4-1.4"/></svg>',
};
const FOUND_MAX = 12;

export function mount() {
  apply();
  const ends = [mountState(), mountTheme(), mountZone(), mountSearch(), mountKeys(), mountBadges()];
  return { unmount: () => ends.forEach((end) => end?.()) };
}

function mountState() {
  const pill = document.getElementById("cp-state");
  const words = pill.querySelector("span");
  return watchState(({ name, ageS, said }) => {
    // Only a change is read out; the age of stale data goes on in silence.
    if (pill.dataset.state !== name) pill.dataset.state = document.documentElement.dataset.state = name;
    const old = name === "stale" && ageS !== null ? ` ${age(ageS)}` : "";
    const text = WORDS[name] + old;
    if (words.textContent !== text) words.textContent = text;
    const hint = said ?? HINTS[name] ?? "";
    if (pill.title !== hint) pill.title = hint;
  });
}

function mountTheme() {
  const button = document.getElementById("cp-theme");
  const show = () => {
    button.innerHTML = ICONS[choice()];
    button.setAttribute("aria-label", `Theme: ${choice()}`);
    button.title = `Theme: ${choice()} (t)`;
    button.dataset.choice = choice();
  };
  button.onclick = () => {
    next();
    show();
  };
  show();
}

function mountZone() {
  const button = document.getElementById("cp-zone");
  const show = () => {
    button.textContent = zoneName();
    button.dataset.zone = zone();
    button.setAttribute("aria-label", `Times in ${zone() === "utc" ? "UTC" : "local time"}`);
  };
  button.onclick = () => setZone(zone() === "utc" ? "local" : "utc");
  show();
  return onZone(show);
}

function mountBadges() {
  return watchState(({ lake }) => {
    for (const badge of document.querySelectorAll("[data-badge]")) {
      const value = lake?.[badge.dataset.badge] ?? 0;
      badge.hidden = !value;
      const text = String(value);
      if (badge.textContent !== text) badge.textContent = text;
    }
  });
}

function mountSearch() {
  const input = document.getElementById("cp-search");
  const list = document.getElementById("cp-found");
  let symbols = [];
  let found = [];
  let at = 0;
  const end = subscribe("products", (message) => {
    symbols = message.symbols;
  });

  const show = () => {
    const wanted = input.value.trim().toUpperCase();
    const begins = symbols.filter((symbol) => symbol.startsWith(wanted));
    const holds = symbols.filter((symbol) => !symbol.startsWith(wanted) && symbol.includes(wanted));
    found = document.activeElement === input ? [...begins, ...holds].slice(0, FOUND_MAX) : [];
    at = Math.min(at, Math.max(found.length - 1, 0));
    list.replaceChildren(
      ...found.map((symbol, place) => {
        const item = document.createElement("li");
        item.id = `cp-found-${place}`;
        item.setAttribute("role", "option");
        item.setAttribute("aria-selected", String(place === at));
        item.textContent = symbol;
        item.onmousedown = (event) => {
          event.preventDefault();
          go(symbol);
        };
        return item;
      }),
    );
    if (!found.length && wanted && symbols.length) {
      const item = document.createElement("li");
      item.className = "cp-nothing";
      item.textContent = "No such product";
      list.append(item);
    }
    list.hidden = !list.children.length || document.activeElement !== input;
    input.setAttribute("aria-expanded", String(!list.hidden));
    if (found.length) input.setAttribute("aria-activedescendant", `cp-found-${at}`);
    else input.removeAttribute("aria-activedescendant");
  };
  input.oninput = () => {
    at = 0;
    show();
  };
  input.onfocus = show;
  input.onblur = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
  };
  input.onkeydown = (event) => {
    if (event.key === "Enter" && found[at]) go(found[at]);
    else if (event.key === "Escape") {
      input.value = "";
      input.blur();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      at = (at + (event.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(found.length, 1);
      show();
    }
  };
  return end;
}

export function go(symbol) {
  location.href = `${window.path_prefix ?? ""}/product/${encodeURIComponent(symbol)}`;
}

function mountKeys() {
  let prefix = 0;
  const help = document.getElementById("cp-help");
  help.onclick = toggleHelp;
  const pressed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    const isGoing = Date.now() - prefix < 1500;
    prefix = 0;
    const link = isGoing && document.querySelector(`.cp-nav a[title$="(g ${event.key})"]`);
    if (link) link.click();
    else if (event.key === "g") prefix = Date.now();
    else if (event.key === "/") {
      event.preventDefault();
      document.getElementById("cp-search").focus();
    } else if (event.key === "t") document.getElementById("cp-theme").click();
    else if (event.key === "u") document.getElementById("cp-zone").click();
    else if (event.key === "?") toggleHelp();
  };
  addEventListener("keydown", pressed);
  return () => removeEventListener("keydown", pressed);
}

function isTyping(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

function toggleHelp() {
  const open = document.querySelector("dialog.cp-dialog");
  if (open) {
    open.close();
    return;
  }
  const dialog = document.createElement("dialog");
  dialog.className = "cp-dialog";
  const pages = [...document.querySelectorAll(".cp-nav a")].map((link) => [
    link.title.match(/\((.+)\)/)[1],
    link.firstChild.textContent,
  ]);
  const keys = [
    ["/", "Go to a product"],
    ...pages,
    ["f", "Filter the table"],
    ["↑ ↓ Enter", "Move in the table, open the row"],
    ["1 … 7", "Grain of the chart"],
    ["← → + −", "Move and zoom the chart"],
    ["0", "Back to the newest candles"],
    ["t", "Theme: auto, dark, light"],
    ["u", "Times in UTC or local time"],
    ["?", "This list"],
  ];
  const title = document.createElement("h2");
  title.textContent = "Keyboard";
  const terms = document.createElement("dl");
  for (const [key, what] of keys) {
    const term = document.createElement("dt");
    term.append(...key.split(" ").map((one) => Object.assign(document.createElement("kbd"), { textContent: one })));
    terms.append(term, Object.assign(document.createElement("dd"), { textContent: what }));
  }
  const close = Object.assign(document.createElement("button"), { className: "cp-button", textContent: "Close" });
  close.onclick = () => dialog.close();
  dialog.append(title, terms, close);
  dialog.onclose = () => dialog.remove();
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  document.body.append(dialog);
  dialog.showModal();
}
