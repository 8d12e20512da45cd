// Answers of the server to questions that are asked again and again (`serve/live/answers.py`), as rows with names.

import { subscribe, watchState } from "./live.js";
import { emptyText } from "./parts.js";

// Calls `handler(rows, message)` with each new answer to the question `name`, and `told(text)` with what to say in the
// place of rows: "" when there are some. `empty` is said when the answer has none. Returns a function that ends that.
export function answer(name, { handler, told = () => {}, empty = "Nothing here." }) {
  let message = null;
  let state = null;
  const tell = () => {
    if (message?.state === "failed") told(`This could not be read: ${message.said}`);
    else if (message?.rows && !message.rows.length) told(state?.lake?.state === "empty" ? "There are no trades yet." : empty);
    else if (message) told("");
    else if (state?.name === "disconnected" || state?.said) told(emptyText(state));
    else told("Reading …");
  };
  const ends = [
    subscribe(`answers/${name}`, (next) => {
      message = next;
      // What was read before stays while it can't be read again; the words above it say so.
      if (next.state === "answered") handler(next.rows ? named(next.columns, next.rows) : [], next);
      tell();
    }),
    watchState((now) => {
      const isNews = now.lake?.state !== state?.lake?.state;
      state = now;
      if (!message || isNews) tell();
    }),
  ];
  return () => ends.forEach((end) => end());
}

// Rows of values as objects by their columns' names.
export function named(columns, rows) {
  return rows.map((values) => {
    const row = {};
    columns.forEach((name, place) => (row[name] = values[place]));
    return row;
  });
}

// A panel with a title in `parent`: {element, body, tools, say(text)}. `say` shows words in the place of the body.
export function panel(parent, title, hint) {
  const element = document.createElement("section");
  element.className = "cp-panel";
  element.setAttribute("aria-label", title);
  const head = document.createElement("h2");
  head.className = "cp-panel-head";
  head.append(Object.assign(document.createElement("span"), { textContent: title, title: hint ?? "" }));
  const tools = Object.assign(document.createElement("span"), { className: "cp-panel-tools" });
  head.append(tools);
  const note = Object.assign(document.createElement("p"), { className: "cp-empty" });
  const body = document.createElement("div");
  element.append(head, note, body);
  parent.append(element);
  const say = (text) => {
    if (note.textContent !== text) note.textContent = text;
    note.hidden = !text;
    body.hidden = Boolean(text) && !text.startsWith("This could not be read");
  };
  say("Reading …");
  return { element, body, tools, say };
}

// Buttons of which one is pressed: choices [[value, words, title]]; calls `choose(value)`.
export function choice(parent, label, choices, chosen, choose) {
  const group = document.createElement("span");
  group.className = "cp-group";
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", label);
  for (const [value, text, title] of choices) {
    const button = Object.assign(document.createElement("button"), { className: "cp-button", type: "button", textContent: text });
    if (title) button.title = title;
    button.dataset.value = value;
    button.setAttribute("aria-pressed", String(value === chosen));
    button.onclick = () => {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
      choose(value);
    };
    group.append(button);
  }
  parent.append(group);
  return group;
}

// JSON of the server; throws an Error whose text is for people, with `faults` of a form by field if there are any.
export async function ask(path, { method = "GET", body, signal } = {}) {
  let response;
  try {
    response = await fetch(`${window.path_prefix ?? ""}${path}`, {
      method,
      signal,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
  const found = await response.json().catch(() => null);
  if (response.ok && found) return found;
  const error = new Error(found?.said ?? `The server answers ${response.status}.`);
  error.faults = found?.faults ?? null;
  throw error;
}
