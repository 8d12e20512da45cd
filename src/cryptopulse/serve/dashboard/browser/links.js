// Addresses of products, their charts, and the details on the completeness page.

export const HOUR_MS = 3_600_000;
export const DAY_MS = 86_400_000;

const GRAINS_S = { "1s": 1, "5s": 5, "15s": 15, "1m": 60, "5m": 300, "15m": 900, "1h": 3600 };
const CANDLES_SPANNED = 60; // most candles for the time of interest, so that there is room around it

// The finest grain in which `seconds` take at most CANDLES_SPANNED candles.
export function grainFor(seconds) {
  return Object.keys(GRAINS_S).find((name) => seconds / GRAINS_S[name] <= CANDLES_SPANNED) ?? "1h";
}

// "2025-10-10T21:15" or with seconds, in UTC.
export function isoOf(ms) {
  return new Date(ms).toISOString().slice(0, 19).replace(/:00$/, "");
}

// ms since 1970 from a text of `isoOf`, a day, or a time with an offset; null for anything else.
export function msOf(text) {
  const found = /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d+)?)?))?(Z|[+-]\d\d:\d\d)?$/.exec((text ?? "").trim());
  const ms = found ? Date.parse(`${found[1]}T${found[2] ?? "00:00"}${found[3] ?? "Z"}`) : NaN;
  return Number.isNaN(ms) ? null : ms;
}

// Hashes of details on the completeness page: "#BTC-USD/2025-10-10T21:00/hour" (or day), "#BTC-USD/5905140-5905256".
export function timeHash(symbol, startMs, stepMs) {
  return `#${symbol}/${isoOf(startMs)}/${stepMs === DAY_MS ? "day" : "hour"}`;
}

export function holeHash(symbol, firstId, lastId) {
  return `#${symbol}/${firstId}-${lastId}`;
}

// Parses such a hash, without its "#"; {} if it is none.
export function holeOf(hash) {
  const found = /^([A-Z0-9]+(?:-[A-Z0-9]+){1,2}|[^@]+@[a-z-]+)\/(?:([\dT:-]+)\/(hour|day)|(\d+)-(\d+))$/.exec(hash);
  if (!found) return {};
  const [, symbol, time, span, first, last] = found;
  return { symbol, startMs: msOf(time), span, first, last };
}

export function productLink(symbol) {
  return `${globalThis.path_prefix ?? ""}/product/${encodeURIComponent(symbol)}`;
}

// The chart of a product with `atMs` in the middle, in the grain for `seconds`; `id`: the episode to mark.
export function chartLink(symbol, { atMs, seconds, id }) {
  const query = new URLSearchParams({ at: isoOf(atMs), grain: grainFor(seconds) });
  const hash = id ? `#${encodeURIComponent(id)}` : "";
  return `${productLink(symbol)}?${query.toString().replaceAll("%3A", ":")}${hash}`;
}

// The hash of a message in the list of the newest quarantined ones.
export function messageHash({ partition, offset }) {
  return `#message-${partition}-${offset}`;
}

export function messageLink(message) {
  return `${globalThis.path_prefix ?? ""}/pipeline${messageHash(message)}`;
}
