// The page's one connection to the server: subscribes to topics, and passes messages and state to the modules.

const QUIET_MS = 6000; // the server sends something every 2 s; after three times that the connection is dead
const BACKOFF_FIRST_MS = 250;
const BACKOFF_MAX_MS = 4000;
export const STALE_S = 10; // pipelines commit several times a second; even quiet products trade within seconds

const handlers = new Map(); // topic → functions
const watchers = new Set(); // called when the state changes
let socket = null;
let heardAt = 0;
let backoff = BACKOFF_FIRST_MS;
let retry = null;

const state = {
  connected: false,
  everConnected: false,
  lake: null, // the newest message of topic "lake"
  skewMs: 0, // this clock minus the server's
};

// Calls `handler(message)` for each message of `topic`; returns a function that unsubscribes.
export function subscribe(topic, handler) {
  const isFirst = !handlers.has(topic);
  if (isFirst) handlers.set(topic, new Set());
  handlers.get(topic).add(handler);
  if (isFirst) sendTopics();
  return () => {
    const rest = handlers.get(topic);
    rest?.delete(handler);
    if (rest && !rest.size) {
      handlers.delete(topic);
      sendTopics();
    }
  };
}

// Calls `watcher(state)` now and whenever the state of connection or data changes.
export function watchState(watcher) {
  watchers.add(watcher);
  watcher(describe());
  return () => watchers.delete(watcher);
}

// The state of connection and data: {name, ageS, nowMs, dataAgeS, detail}. `ageS`: since the newest commit; `nowMs`: time of
// the newest trade, which is "now" on all pages; `dataAgeS`: how long ago that was.
export function describe() {
  const lake = state.lake;
  const ageOf = (us) => (us ? Math.max(0, (Date.now() - state.skewMs - us / 1000) / 1000) : null);
  const ageS = ageOf(lake?.loaded_us);
  let name = "live";
  if (!state.connected) name = state.everConnected ? "disconnected" : "loading";
  else if (!lake || lake.state === "loading") name = "loading";
  else if (lake.state === "refused" || lake.state === "unreachable") name = lake.state;
  else if (lake.state === "empty") name = "empty";
  else if (ageS === null || ageS > STALE_S) name = "stale";
  return { name, ageS, nowMs: lake?.now_us ? lake.now_us / 1000 : null, dataAgeS: ageOf(lake?.now_us), detail: lake?.detail ?? null, lake };
}

function notify() {
  const now = describe();
  for (const watcher of watchers) watcher(now);
}

function sendTopics() {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ topics: [...handlers.keys()] }));
}

function connect() {
  retry = null;
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const opened = new WebSocket(`${scheme}//${location.host}${window.path_prefix ?? ""}/live`);
  socket = opened;
  heardAt = Date.now();
  opened.onopen = () => {
    state.connected = state.everConnected = true;
    backoff = BACKOFF_FIRST_MS;
    heardAt = Date.now();
    sendTopics();
    notify();
  };
  opened.onmessage = (event) => {
    heardAt = Date.now();
    for (const message of JSON.parse(event.data)) {
      if (message.topic === "lake") {
        // The smallest difference to the server's clock is the best estimate: the others include delays of the network.
        const skewMs = Date.now() - message.clock_us / 1000;
        state.skewMs = state.lake ? Math.min(state.skewMs + 1, skewMs) : skewMs;
        state.lake = message;
        notify();
      }
      for (const handler of handlers.get(message.topic) ?? []) {
        try {
          handler(message);
        } catch (error) {
          console.error(error);
        }
      }
    }
  };
  opened.onclose = () => socket === opened && disconnected();
}

function disconnected() {
  socket = null;
  state.connected = false;
  notify();
  if (retry === null) {
    retry = setTimeout(connect, backoff * (0.5 + Math.random() / 2));
    backoff = Math.min(backoff * 2, BACKOFF_MAX_MS);
  }
}

setInterval(() => {
  if (socket && Date.now() - heardAt > QUIET_MS) {
    const silent = socket;
    disconnected();
    silent.close();
  }
  notify(); // ages grow
}, 1000);

addEventListener("online", () => {
  if (!state.connected) {
    clearTimeout(retry);
    connect();
  }
});

handlers.set("lake", new Set());
connect();
