// Shell commands that check for missing trades and fetch them.

import { h } from "./dom.js";
import { isoOf } from "./links.js";

const MINUTE_MS = 60_000;

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// The time range as options, extended to whole minutes.
function range(fromMs, toMs) {
  const from = Math.floor(fromMs / MINUTE_MS) * MINUTE_MS;
  return `--from ${isoOf(from)} --to ${isoOf(Math.max(Math.ceil(toMs / MINUTE_MS) * MINUTE_MS, from + MINUTE_MS))}`;
}

// Whether missing trades of a product can be fetched.
export function isFetched(symbol) {
  return /^[^@]*$|@(kraken|binance|okx)$/.test(symbol);
}

// How far it can be proved that no trade of a product is missing: as GRADE_SQL of lake/products.py.
export function gradeOf(symbol) {
  if (symbol.endsWith("-CDE")) return "sequence";
  return isFetched(symbol) || symbol.endsWith("@binance-aggregates") ? "ids" : "none";
}

// Fetches the missing trades of `symbols` between two times (ms).
export function backfillCommand(symbols, fromMs, toMs, lake) {
  return `cryptopulse backfill ${symbols.join(" ")} ${range(fromMs, toMs)} --lake ${quoted(lake)}`;
}

// Checks products (empty: all), between two times (ms) or over all time.
export function auditCommand(symbols, lake, fromMs = null, toMs = null) {
  const products = symbols.map((symbol) => ` --product ${symbol}`).join("");
  return `cryptopulse audit --lake ${quoted(lake)}${products}${fromMs === null ? "" : ` ${range(fromMs, toMs)}`}`;
}

// A line with a command and a button that copies it.
export function commandLine(text) {
  const code = h("code", { textContent: text, tabIndex: 0 });
  const copy = h("button", { className: "cp-button", type: "button", textContent: "Copy", "aria-label": `Copy: ${text}` });
  copy.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // there is no clipboard over plain HTTP, so at least select it
      copy.textContent = "Selected";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  };
  return h("div", { className: "cp-command" }, code, copy);
}
