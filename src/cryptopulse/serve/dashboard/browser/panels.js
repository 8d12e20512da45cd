// Building blocks of pages: panels, figures, choices, and queries whose results are kept up to date.

import { toObjects } from "./api.js";
import { h, setNote, setText } from "./dom.js";
import { subscribe, watchState } from "./live.js";

const EMPTY = {
  loading: "Reading the newest data …",
  empty: "There are no trades yet. Start the pipeline with “cryptopulse run”, or see it work with “cryptopulse demo”.",
  disconnected: "The server does not answer. This page tries again by itself.",
};

// The text that replaces missing content, by the state of the data (`live.js`).
export function emptyText(state) {
  return state?.detail ?? EMPTY[state?.name] ?? EMPTY.loading;
}

// Shows a query of the server (`serve/live/query_cache.py`) in a panel: calls `onRows(rows, message)` with each new result.
// `onStatus(text)` gets a text to show instead of rows, "" when there are rows; `empty` is that text for an empty result.
// Returns a function that unsubscribes.
export function showQuery(name, { onRows, onStatus = () => {}, empty = "Nothing here." }) {
  let message = null;
  let state = null;
  const update = () => {
    if (message?.state === "failed") onStatus(`This could not be read: ${message.detail}`);
    else if (message?.rows && !message.rows.length) onStatus(state?.lake?.state === "empty" ? "There are no trades yet." : empty);
    else if (message) onStatus("");
    else if (state?.name === "disconnected" || state?.detail) onStatus(emptyText(state));
    else onStatus("Reading …");
  };
  const ends = [
    subscribe(`queries/${name}`, (next) => {
      message = next;
      // After a failure the previous rows stay; the text above them says so.
      if (next.state === "answered") onRows(next.rows ? toObjects(next) : [], next);
      update();
    }),
    watchState((now) => {
      const isNews = now.lake?.state !== state?.lake?.state;
      state = now;
      if (!message || isNews) update();
    }),
  ];
  return () => ends.forEach((end) => end());
}

// A panel with a title in `parent`: {body, tools, onStatus(text)}. `onStatus` shows a text instead of the body.
export function panel(parent, title, hint = "") {
  const tools = h("span", { className: "cp-panel-tools" });
  const head = h("h2", { className: "cp-panel-head" }, h("span", { textContent: title, title: hint }), tools);
  const note = h("p", { className: "cp-empty" });
  const body = h("div");
  parent.append(h("section", { className: "cp-panel", "aria-label": title }, head, note, body));
  const onStatus = (text) => {
    setNote(note, text);
    body.hidden = Boolean(text) && !text.startsWith("This could not be read");
  };
  onStatus("Reading …");
  return { body, tools, onStatus };
}

// A container for panels side by side.
export function halves(parent, className = "") {
  const row = h("div", { className: `cp-halves ${className}` });
  parent.append(row);
  return row;
}

// Figures in a row, for `labels` {name: [label, title]}; returns {name: function that sets text and optional direction}.
export function figures(parent, title, labels) {
  const row = h("section", { className: "cp-strip", "aria-label": title });
  parent.append(row);
  const setters = Object.entries(labels).map(([name, [label, hint]]) => {
    const value = h("b", { textContent: "–" });
    row.append(h("div", { className: "cp-figure", title: hint }, h("span", { textContent: label }), value));
    const set = (text, direction) => {
      setText(value, text);
      if (direction) value.dataset.direction = direction;
      else delete value.dataset.direction;
    };
    return [name, set];
  });
  return Object.fromEntries(setters);
}

// A group of buttons, one of them pressed: choices [[value, text, title]]; calls `onChoose(value)`.
export function choice(parent, label, choices, chosen, onChoose) {
  const group = h("span", { className: "cp-group", role: "group", "aria-label": label });
  for (const [value, textContent, title] of choices) {
    const button = h("button", { className: "cp-button", type: "button", textContent, title, "data-value": value, "aria-pressed": String(value === chosen) });
    button.onclick = () => {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
      onChoose(value);
    };
    group.append(button);
  }
  parent.append(group);
}

// A closable panel with details: {element, find(selector), setHead(title, tags)}. `html`: the content below its head and the
// text in `.cp-story`.
export function detailsPanel(parent, label, className, html, onClose) {
  const element = h("section", { className: `cp-panel ${className}`, "aria-label": label, hidden: true });
  element.innerHTML =
    '<div class="cp-details-head"><h2></h2><span class="cp-tags"></span><button type="button" class="cp-button cp-icon" aria-label="Close" title="Close (Esc)">×</button></div>' +
    `<p class="cp-story" role="status"></p>${html}`;
  const find = (selector) => element.querySelector(selector);
  find("button").onclick = onClose;
  parent.append(element);
  const setHead = (title, tags) => {
    find("h2").replaceChildren(...title);
    find(".cp-tags").replaceChildren(...tags.map(tag));
  };
  return { element, find, setHead };
}

// FLASH_CRASH → Flash crash
export function words(text) {
  const spaced = String(text).replaceAll("_", " ").toLowerCase();
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

// A value of a fixed set, coloured by the style sheet.
export function tag(value) {
  return h("span", { className: "cp-tag", textContent: words(value), "data-value": value });
}
