// DOM helpers of all modules: elements, keys, the hash of the address, local storage.

// Makes an element with `properties`. Names that are not properties of the element, such as "data-key" or "aria-label",
// become attributes; undefined values are left out.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Sets a text only when it changes: each change is read out by screen readers and causes a new layout.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Sets a text, and hides the element when there is none.
export function setNote(element, text) {
  setText(element, text ?? "");
  element.hidden = !text;
}

// Calls `handler(event)` for each key that is neither typed into a field nor a shortcut of the browser. Returns a function
// that removes the handler, as all functions `on…` do.
export function onKey(handler) {
  return onWindow("keydown", (event) => {
    const isTyping = event.target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName ?? "");
    if (!isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) handler(event);
  });
}

export function onHash(handler) {
  return onWindow("hashchange", () => handler(currentHash()));
}

function onWindow(name, listener) {
  addEventListener(name, listener);
  return () => removeEventListener(name, listener);
}

export function currentHash() {
  return decodeURIComponent(location.hash.slice(1));
}

// Sets query and hash of the address, without an entry in the history; undefined leaves them unchanged.
export function replaceAddress({ query = location.search.slice(1), hash = currentHash() }) {
  const search = String(query).replaceAll("%3A", ":");
  history.replaceState(null, "", `${location.pathname}${search && `?${search}`}${hash && `#${encodeURIComponent(hash)}`}`);
}

// The value stored under `key`; null when there is none, or no storage.
export function readStorage(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function writeStorage(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // without storage it holds only for this page
  }
}
