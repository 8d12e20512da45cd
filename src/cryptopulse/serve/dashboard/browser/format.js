// Numbers and times as text. Thin spaces between thousands, a sign that is a minus, digits of one width.

const THIN = "\u202f";
export const NONE = "–";
const ZONE_KEY = "cryptopulse.zone";
const zoneWatchers = new Set();

function grouped(text) {
  const [whole, rest] = text.split(".");
  const spaced = whole.replace(/\B(?=(\d{3})+(?!\d))/g, THIN);
  return rest === undefined ? spaced : `${spaced}.${rest}`;
}

export function known(value) {
  return value !== null && value !== undefined && !Number.isNaN(value);
}

// 62787.29, 2 → "62 787.29"
export function price(value, decimals) {
  return known(value) ? grouped(Number(value).toFixed(decimals ?? 2)).replace("-", "−") : NONE;
}

// Prices given as text, with the decimals of the one that has most: "1911.38" and "1960.7" are 1 911.38 and 1 960.70.
export function pricesAlike(...texts) {
  const decimals = Math.max(...texts.map((text) => text.split(".")[1]?.length ?? 0));
  return texts.map((text) => price(Number(text), decimals));
}

// 0.1234 → "+0.12 %"; what rounds to nothing has no sign
export function percent(value, digits = 2) {
  if (!known(value)) return NONE;
  const text = Math.abs(value).toFixed(digits);
  const sign = Number(text) === 0 ? "" : value > 0 ? "+" : "−";
  return `${sign}${grouped(text)}${THIN}%`;
}

// Up, down, or neither, as it is shown.
export function direction(value, digits = 2) {
  if (!known(value) || Number(Math.abs(value).toFixed(digits)) === 0) return "flat";
  return value > 0 ? "up" : "down";
}

const UNITS = [
  [1e15, "Q"],
  [1e12, "T"],
  [1e9, "B"],
  [1e6, "M"],
  [1e3, "K"],
];

// 72083240 → "72.1 M": three digits that count
export function amount(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  for (const [unit, letter] of UNITS) {
    if (size >= unit * 0.9995) return `${significant(value / unit)}${THIN}${letter}`;
  }
  if (size === 0) return "0";
  return size >= 1 ? significant(value) : Number(value).toPrecision(3).replace(/\.?0+$/, "");
}

function significant(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
}

export function count(value) {
  return known(value) ? grouped(String(Math.round(value))) : NONE;
}

export function share(value) {
  return known(value) ? `${value.toFixed(0)}${THIN}%` : NONE;
}

// "4 s", "12 min", "3 h", "2 d"
export function age(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 10) return `${seconds.toFixed(1)}${THIN}s`;
  if (seconds < 120) return `${Math.floor(seconds)}${THIN}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}${THIN}min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)}${THIN}h`;
  return `${Math.floor(seconds / 86400)}${THIN}d`;
}

let zoneChoice = "utc";
try {
  zoneChoice = localStorage.getItem(ZONE_KEY) === "local" ? "local" : "utc";
} catch {
  // no storage: UTC
}

export function zone() {
  return zoneChoice;
}

export function setZone(choice) {
  zoneChoice = choice;
  try {
    localStorage.setItem(ZONE_KEY, choice);
  } catch {
    // it holds for this page
  }
  for (const watcher of zoneWatchers) watcher(choice);
}

export function onZone(watcher) {
  zoneWatchers.add(watcher);
  return () => zoneWatchers.delete(watcher);
}

const two = (number) => String(number).padStart(2, "0");

// The parts of a time in the chosen zone; `ms` since 1970.
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

export function dateTime(ms) {
  return `${date(ms)} ${clock(ms)} ${zoneName(ms)}`;
}

// "UTC", or this machine's zone as in "GMT+1"
export function zoneName(ms = Date.now()) {
  if (zoneChoice === "utc") return "UTC";
  const found = new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(new Date(ms));
  return found.find((part) => part.type === "timeZoneName")?.value ?? "local";
}
