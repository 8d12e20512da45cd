// The header: state of the data, search, theme, time zone, shortcuts.

import { h, onKey, setText } from "./dom.js";
import { age, dateTime, onZone, setZone, zone, zoneName } from "./format.js";
import { productLink } from "./links.js";
import { STALE_S, subscribe, watchState } from "./live.js";
import { applyTheme, nextTheme, themeChoice } from "./theme.js";

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
const SUGGESTIONS_MAX = 12;
const PAST_S = 3600; // data older than this are marked as from the past
const LATE_S = 60; // by so much the newest trade may be older than its commit before it is said
const SEQUENCE_MS = 1500; // the key of a page must follow `g` within this time

export function mount() {
  applyTheme();
  const themeButton = document.getElementById("cp-theme");
  const showTheme = () => {
    themeButton.innerHTML = ICONS[themeChoice];
    themeButton.setAttribute("aria-label", `Theme: ${themeChoice}`);
    themeButton.title = `Theme: ${themeChoice} (t)`;
    themeButton.dataset.choice = themeChoice;
  };
  themeButton.onclick = () => {
    nextTheme();
    showTheme();
  };
  showTheme();
  const zoneButton = document.getElementById("cp-zone");
  const showZone = () => {
    zoneButton.textContent = zoneName();
    zoneButton.dataset.zone = zone();
    zoneButton.setAttribute("aria-label", `Times in ${zone() === "utc" ? "UTC" : "local time"}`);
  };
  zoneButton.onclick = () => setZone(zone() === "utc" ? "local" : "utc");
  showZone();
  const ends = [onZone(showZone), watchState(showState), mountSearch(), mountKeys()];
  return { unmount: () => ends.forEach((end) => end()) };
}

function showState({ name, ageS, nowMs, dataAgeS, detail, lake }) {
  const pill = document.getElementById("cp-state");
  // Screen readers read out only a change of the state, not the growing age of stale data.
  if (pill.dataset.state !== name) pill.dataset.state = document.documentElement.dataset.state = name;
  const text = pill.querySelector("span");
  setText(text, WORDS[name] + (name === "stale" && ageS !== null ? ` ${age(ageS)}` : ""));
  const isLate = dataAgeS > (ageS ?? 0) + LATE_S && dataAgeS <= PAST_S;
  text.dataset.late = isLate ? `, trades ${age(dataAgeS)} old` : "";
  const newest = nowMs === null ? "" : `\nNewest trade: ${dateTime(nowMs)}, ${age(dataAgeS)} ago`;
  const loaded = ageS === null ? "" : `\nNewest commit: ${age(ageS)} ago`;
  const hint = (detail ?? HINTS[name] ?? "") + newest + loaded;
  if (pill.title !== hint) pill.title = hint;
  const asOf = document.getElementById("cp-as-of");
  asOf.hidden = !(dataAgeS > PAST_S);
  setText(asOf, asOf.hidden ? "" : `As of ${dateTime(nowMs)}, ${age(dataAgeS)} ago, when the newest trade was. Loaded ${age(ageS)} ago.`);
  for (const badge of document.querySelectorAll("[data-badge]")) {
    const value = lake?.[badge.dataset.badge] ?? 0;
    badge.hidden = !value;
    setText(badge, String(value));
  }
}

function mountSearch() {
  const input = document.getElementById("cp-search");
  const list = document.getElementById("cp-found");
  let symbols = [];
  let found = [];
  let at = 0;
  const open = (symbol) => (location.href = productLink(symbol));
  const show = () => {
    const wanted = input.value.trim().toUpperCase();
    const place = (symbol) => symbol.toUpperCase().indexOf(wanted);
    const starting = symbols.filter((symbol) => place(symbol) === 0);
    const containing = symbols.filter((symbol) => place(symbol) > 0);
    found = document.activeElement === input ? [...starting, ...containing].slice(0, SUGGESTIONS_MAX) : [];
    at = Math.min(at, Math.max(found.length - 1, 0));
    const items = found.map((symbol, place) => {
      const onmousedown = (event) => {
        event.preventDefault();
        open(symbol);
      };
      return h("li", { id: `cp-found-${place}`, role: "option", "aria-selected": String(place === at), textContent: symbol, onmousedown });
    });
    if (!found.length && wanted && symbols.length) items.push(h("li", { className: "cp-nothing", textContent: "No such product" }));
    list.replaceChildren(...items);
    list.hidden = !items.length || document.activeElement !== input;
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
    if (event.key === "Enter" && found[at]) open(found[at]);
    else if (event.key === "Escape") {
      input.value = "";
      input.blur();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      at = (at + (event.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(found.length, 1);
      show();
    }
  };
  return subscribe("products", (message) => (symbols = message.symbols));
}

function mountKeys() {
  let goPressedMs = 0;
  document.getElementById("cp-help").onclick = toggleHelp;
  return onKey((event) => {
    const isSequence = Date.now() - goPressedMs < SEQUENCE_MS;
    goPressedMs = 0;
    const link = isSequence && document.querySelector(`.cp-nav a[title$="(g ${CSS.escape(event.key)})"]`);
    if (link) link.click();
    else if (event.key === "g") goPressedMs = Date.now();
    else if (event.key === "/") {
      event.preventDefault();
      document.getElementById("cp-search").focus();
    } else if (event.key === "t") document.getElementById("cp-theme").click();
    else if (event.key === "u") document.getElementById("cp-zone").click();
    else if (event.key === "?") toggleHelp();
  });
}

function toggleHelp() {
  const opened = document.querySelector("dialog.cp-dialog");
  if (opened) {
    opened.close();
    return;
  }
  const keys = [
    ["/", "Go to a product"],
    ...[...document.querySelectorAll(".cp-nav a")].map((link) => [link.title.match(/\((.+)\)/)[1], link.firstChild.textContent]),
    ["f", "Filter the table of Market or Alerts"],
    ["↑ ↓ Enter", "From the filter into the table, move in it, open a row"],
    ["Esc", "Clear the filter, close the details"],
    ["1 … 7", "Grain of a product’s chart"],
    ["← → + −", "Move and zoom it"],
    ["d", "Go to a date"],
    [", .", "To the alert before, or after"],
    ["0", "Back to the newest candles"],
    ["↑ ↓ ← →", "Move in the heatmap of Completeness; Enter opens a cell"],
    ["t", "Theme: auto, dark, light"],
    ["u", "Times in UTC or local time"],
    ["?", "This list"],
  ];
  const terms = keys.flatMap(([key, what]) => [
    h("dt", {}, ...key.split(" ").map((one) => h("kbd", { textContent: one }))),
    h("dd", { textContent: what }),
  ]);
  const close = h("button", { className: "cp-button", textContent: "Close", onclick: () => dialog.close() });
  const dialog = h("dialog", { className: "cp-dialog" }, h("h2", { textContent: "Keyboard" }), h("dl", {}, ...terms), close);
  dialog.onclose = () => dialog.remove();
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  document.body.append(dialog);
  dialog.showModal();
}
