// The document as all modules use it: elements, keys, the hash of the address, and what the browser stores.

// An element with `properties`; what is none of its properties, such as "data-key" or "aria-label", becomes an attribute.
// Those that are undefined are left out.
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

// Sets a text only when it changes: screen readers read out every change, and the browser lays out anew.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Sets a text, and hides the element when there is none.
export function setNote(element, text) {
  setText(element, text ?? "");
  element.hidden = !text;
}

// Calls `handler(event)` for each key that is neither typed into a field nor a shortcut of the browser. Returns a function
// that ends that, as all that begin with `on`.
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

// Puts query and hash into the address, without an entry in the history; undefined leaves what is there.
export function replaceAddress({ query = location.search.slice(1), hash = currentHash() }) {
  const search = String(query).replaceAll("%3A", ":");
  history.replaceState(null, "", `${location.pathname}${search && `?${search}`}${hash && `#${encodeURIComponent(hash)}`}`);
}

// What was stored under `key`; null when nothing was, or nothing can be.
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
    // it holds for this page
  }
}
