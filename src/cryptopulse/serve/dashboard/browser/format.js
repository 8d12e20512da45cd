// Numbers and times as text: thin spaces between thousands, a real minus sign, digits of equal width.

import { readStorage, writeStorage } from "./dom.js";

const THIN = "\u202f";
export const NONE = "–";
const ZONE_KEY = "cryptopulse.zone";
const zoneWatchers = new Set();

function grouped(text) {
  const [whole, ...rest] = text.split(".");
  return [whole.replace(/\B(?=(\d{3})+(?!\d))/g, THIN), ...rest].join(".");
}

// Splits a symbol for display: "BTC-USD" → ["BTC", "-USD"], "BTC/USD@kraken" → ["BTC", "/USD@kraken"]
export function symbolParts(symbol) {
  const [base] = symbol.split(/[-/@]/, 1);
  return [base, symbol.slice(base.length)];
}

export function known(value) {
  return value !== null && value !== undefined && !Number.isNaN(value);
}

// 62787.29, 2 → "62 787.29"
export function price(value, decimals) {
  return known(value) ? grouped(Number(value).toFixed(decimals ?? 2)).replace("-", "−") : NONE;
}

// Prices, given as text, with the most decimals of any of them: "1911.38", "1960.7" → "1 911.38", "1 960.70"
export function pricesAlike(...texts) {
  const decimals = Math.max(...texts.map((text) => text.split(".")[1]?.length ?? 0));
  return texts.map((text) => price(Number(text), decimals));
}

// 0.1234 → "+0.12 %"; a value that rounds to zero has no sign
export function percent(value, digits = 2) {
  if (!known(value)) return NONE;
  const text = Math.abs(value).toFixed(digits);
  const sign = Number(text) === 0 ? "" : value > 0 ? "+" : "−";
  return `${sign}${grouped(text)}${THIN}%`;
}

// "up", "down" or "flat", after rounding as `percent` does.
export function direction(value, digits = 2) {
  if (!known(value) || Number(Math.abs(value).toFixed(digits)) === 0) return "flat";
  return value > 0 ? "up" : "down";
}

const UNITS = { Q: 1e15, T: 1e12, B: 1e9, M: 1e6, K: 1e3 };

// 72083240 → "72.1 M": three significant digits
export function amount(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1) return Number(value).toPrecision(3).replace(/\.?0+$/, "");
  const letter = Object.keys(UNITS).find((one) => size >= UNITS[one] * 0.9995);
  const scaled = value / (UNITS[letter] ?? 1);
  const text = scaled.toFixed(Math.abs(scaled) >= 99.95 ? 0 : Math.abs(scaled) >= 9.995 ? 1 : 2);
  return letter ? `${text}${THIN}${letter}` : text;
}

export function count(value) {
  return known(value) ? grouped(String(Math.round(value))) : NONE;
}

export function share(value) {
  return known(value) ? `${value.toFixed(0)}${THIN}%` : NONE;
}

// "4.0 s", "12 min", "3 h", "2 d"; negative values, from a clock that is ahead, count as 0
export function age(value) {
  if (!known(value)) return NONE;
  const seconds = Math.max(value, 0);
  if (seconds < 10) return `${seconds.toFixed(1)}${THIN}s`;
  if (seconds < 120) return `${Math.floor(seconds)}${THIN}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}${THIN}min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)}${THIN}h`;
  return `${Math.floor(seconds / 86400)}${THIN}d`;
}

let zoneChoice = readStorage(ZONE_KEY) === "local" ? "local" : "utc";

export function zone() {
  return zoneChoice;
}

export function setZone(choice) {
  zoneChoice = choice;
  writeStorage(ZONE_KEY, choice);
  for (const watcher of zoneWatchers) watcher(choice);
}

export function onZone(watcher) {
  zoneWatchers.add(watcher);
  return () => zoneWatchers.delete(watcher);
}

const two = (number) => String(number).padStart(2, "0");

// The parts of a time (ms since 1970) in the chosen zone.
function parts(ms) {
  const at = new Date(ms);
  return zoneChoice === "utc"
    ? [at.getUTCFullYear(), at.getUTCMonth() + 1, at.getUTCDate(), at.getUTCHours(), at.getUTCMinutes(), at.getUTCSeconds()]
    : [at.getFullYear(), at.getMonth() + 1, at.getDate(), at.getHours(), at.getMinutes(), at.getSeconds()];
}

export function date(ms) {
  const [year, month, day] = parts(ms);
  return `${year}-${two(month)}-${two(day)}`;
}

// "14:03:22" or "14:03"
export function clock(ms, withSeconds = true) {
  const [, , , hour, minute, second] = parts(ms);
  return `${two(hour)}:${two(minute)}${withSeconds ? `:${two(second)}` : ""}`;
}

// "14:03:22" of today, "11-26 14:03" of this year, else with the year
export function moment(ms) {
  const now = parts(Date.now());
  const then = parts(ms);
  if (then.slice(0, 3).join() === now.slice(0, 3).join()) return clock(ms);
  const day = `${two(then[1])}-${two(then[2])}`;
  return `${then[0] === now[0] ? day : `${then[0]}-${day}`} ${clock(ms, false)}`;
}

export function isToday(ms) {
  return date(ms) === date(Date.now());
}

// "14:03:22" of today, else with the whole date
export function stamp(ms) {
  return isToday(ms) ? clock(ms) : `${date(ms)} ${clock(ms)}`;
}

// "14:03:22.104"
export function clockMs(ms) {
  return `${clock(ms)}.${String(Math.floor(ms % 1000)).padStart(3, "0")}`;
}

// The same; with the date unless it is today
export function instant(ms) {
  return isToday(ms) ? clockMs(ms) : `${date(ms)} ${clockMs(ms)}`;
}

// The label of a tick: a date at midnight, else the time; the first one also has the date below, unless it is today.
export function tick(ms, isFirst) {
  const [, , , hour, minute, second] = parts(ms);
  if (!hour && !minute && !second) return date(ms);
  const text = clock(ms, second !== 0);
  return isFirst && !isToday(ms) ? `${text}\n${date(ms)}` : text;
}

// By how many seconds the chosen zone is ahead of UTC at that time.
export function zoneOffsetS(ms) {
  return zoneChoice === "utc" ? 0 : -60 * new Date(ms).getTimezoneOffset();
}

export function dateTime(ms) {
  return `${date(ms)} ${clock(ms)} ${zoneName(ms)}`;
}

// An hour in the chosen zone, or a UTC day.
export function period(startMs, endMs) {
  if (endMs - startMs > 3_600_000) return `${new Date(startMs).toISOString().slice(0, 10)} (UTC day)`;
  return `${date(startMs)} ${clock(startMs, false)}–${clock(endMs, false)} ${zoneName(startMs)}`;
}

// "UTC", or this machine's zone as in "GMT+1"
export function zoneName(ms = Date.now()) {
  if (zoneChoice === "utc") return "UTC";
  const found = new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(new Date(ms));
  return found.find((part) => part.type === "timeZoneName")?.value ?? "local";
}
