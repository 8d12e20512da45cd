// Completeness: what is held of each product and hour, what came later, what the exchange lacks, and what is missing.

import { answer, choice, panel } from "./answers.js";
import * as format from "./format.js";
import { figure } from "./parts.js";
import { Table } from "./table.js";
import { Grid, STATES } from "./grid.js";

const PRODUCTS = [
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "held", label: "Held", kind: "count", title: "Trade ids held, each once" },
  { key: "share_text", label: "Share", sortKey: "held_pct", title: "Of the ids from the first to the last one held" },
  { key: "missing", label: "Missing", kind: "count", title: "Neither held nor proved absent" },
  { key: "holes", label: "Holes", kind: "count", title: "Runs of ids between two that are held", hide: "phone" },
  { key: "healed", label: "Healed", kind: "count", title: "Came later, over REST" },
  { key: "absent", label: "Absent", kind: "count", title: "The exchange does not have them, as one of its pages shows", hide: "phone" },
  { key: "first_trade_id", label: "First id", kind: "count", hide: "tablet" },
  { key: "last_trade_id", label: "Last id", kind: "count", hide: "tablet" },
];
const HOLES = [
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "first_missing_id", label: "From id", kind: "count" },
  { key: "last_missing_id", label: "To id", kind: "count" },
  { key: "ids_missing", label: "Ids", kind: "count" },
];
const HOURS = [
  { key: "window_start", label: "Hour", kind: "time" },
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "state", label: "State", kind: "badge" },
  { key: "expected_ids", label: "Expected", kind: "count", hide: "phone" },
  { key: "held_ids", label: "Held", kind: "count", hide: "phone" },
  { key: "healed_ids", label: "Healed", kind: "count" },
  { key: "absent_ids", label: "Absent", kind: "count" },
  { key: "missing_ids", label: "Missing", kind: "count" },
];

export function mount(element, { lake }) {
  element.classList.add("cp-completeness");
  const strip = document.createElement("section");
  strip.className = "cp-strip";
  strip.setAttribute("aria-label", "All products");
  const totals = {
    complete: figure(strip, "Complete products"),
    held: figure(strip, "Ids held", "Trade ids held, each once"),
    missing: figure(strip, "Missing", "Neither held nor proved absent"),
    holes: figure(strip, "Holes", "Runs of ids that are not held"),
    healed: figure(strip, "Healed", "Came later, over REST"),
    absent: figure(strip, "Absent", "The exchange does not have them"),
    share: figure(strip, "Held", "Of the ids from each product's first to its last"),
  };
  const verdict = document.createElement("section");
  verdict.className = "cp-verdict";
  verdict.setAttribute("role", "status");
  element.append(strip, verdict);

  const grids = panel(element, "By product and time", "Each cell is a product's hour or day, in UTC");
  const grid = new Grid(grids.body);
  legend(grids.tools);
  let leaveGrid = null;
  const span = (name) => {
    leaveGrid?.();
    leaveGrid = answer(name, {
      handler: (rows) => grid.take(rows, name === "days" ? 86_400_000 : 3_600_000),
      told: grids.say,
      empty: "There is no hour with trades yet.",
    });
  };
  choice(grids.tools, "Span", [["hours", "48 hours"], ["days", "60 days"]], "hours", span);
  span("hours");

  const columns = document.createElement("div");
  columns.className = "cp-halves cp-bounded";
  const products = panel(element, "Products", "From the first to the last id held of each");
  element.append(columns);
  const holes = panel(columns, "Holes", "The 100 newest runs of ids that are not held");
  const hours = panel(columns, "Hours in which trades were missed", "The 100 newest, and what became of them");
  const href = (row) => `${window.path_prefix ?? ""}/product/${encodeURIComponent(row.symbol)}`;
  const tables = {
    products: new Table(products.body, PRODUCTS, { label: "Products", keyOf: (row) => row.symbol, href, sort: { key: "missing", down: true } }),
    holes: new Table(holes.body, HOLES, { label: "Holes", keyOf: (row) => `${row.symbol} ${row.first_missing_id}`, sort: { key: "ids_missing", down: true } }),
    hours: new Table(hours.body, HOURS, { label: "Hours", keyOf: (row) => `${row.symbol} ${row.window_start}`, sort: { key: "window_start", down: true } }),
  };

  let coverage = null;
  let ledger = null;
  const show = () => {
    if (!coverage || !ledger) return;
    const hoursOf = new Map(ledger.map((row) => [row.symbol, row]));
    const rows = coverage.map((row) => {
      const own = hoursOf.get(row.symbol);
      return {
        ...row,
        held: row.ids_held,
        healed: own?.healed_ids ?? 0,
        absent: own?.absent_ids ?? 0,
        missing: Math.max(row.ids_missing - (own?.absent_ids ?? 0), 0),
        since: own?.first_missing,
        share_text: `${share(row.ids_held, row.ids_held + row.ids_missing)}\u202f%`,
      };
    });
    tables.products.replace(rows);
    showVerdict(verdict, rows, lake);
    if (!rows.length) return; // nothing is neither complete nor incomplete
    const sum = (name) => rows.reduce((all, row) => all + row[name], 0);
    const missing = sum("missing");
    const complete = rows.filter((row) => !row.missing).length;
    totals.complete(`${complete} of ${rows.length}`, complete === rows.length ? "up" : undefined);
    totals.held(format.count(sum("held")));
    totals.missing(format.count(missing), missing ? "down" : "up");
    totals.holes(format.count(sum("holes")));
    totals.healed(format.count(sum("healed")));
    totals.absent(format.count(sum("absent")));
    totals.share(`${share(sum("held"), sum("held") + missing)}\u202f%`);
  };
  const ends = [
    answer("completeness", { handler: (rows) => ((coverage = rows), show()), told: products.say, empty: "There are no trades yet." }),
    answer("ledger", { handler: (rows) => ((ledger = rows), show()) }),
    answer("holes", { handler: (rows) => tables.holes.replace(rows), told: holes.say, empty: "None: every id between two that are held is held." }),
    answer("incomplete_hours", {
      handler: (rows) => tables.hours.replace(rows.map((row) => ({ ...row, state: stateOf(row) }))),
      told: hours.say,
      empty: "None: no trade has ever been missed.",
    }),
  ];
  return {
    unmount() {
      leaveGrid?.();
      for (const end of ends) end();
      for (const table of Object.values(tables)) table.unmount();
      grid.unmount();
    },
  };
}

// Never 100 while something is missing.
function share(held, all) {
  if (!all || held === all) return "100";
  const percent = (100 * held) / all;
  for (let digits = 2; digits < 10; digits++) {
    const text = percent.toFixed(digits);
    if (Number(text) < 100) return text;
  }
  return "99.9999999999";
}

function stateOf(row) {
  return row.missing_ids ? "MISSING" : row.absent_ids ? "ABSENT" : row.healed_ids ? "HEALED" : "COMPLETE";
}

function legend(parent) {
  const list = document.createElement("span");
  list.className = "cp-states";
  for (const [name, words, title] of STATES) {
    const one = Object.assign(document.createElement("span"), { textContent: words, title });
    const box = document.createElement("i");
    box.dataset.cell = name;
    one.prepend(box);
    list.append(one);
  }
  parent.append(list);
}

// What the figures mean, and what to do.
function showVerdict(element, rows, lake) {
  const bad = rows.filter((row) => row.missing).sort((a, b) => b.missing - a.missing);
  const missing = bad.reduce((all, row) => all + row.missing, 0);
  const key = `${rows.length > 0} ${missing} ${bad.map((row) => row.symbol).join()}`;
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.dataset.state = missing ? "missing" : rows.length ? "complete" : "empty";
  const title = document.createElement("strong");
  const text = document.createElement("p");
  if (!missing) {
    title.textContent = rows.length ? "Complete" : "No trades yet";
    text.textContent = rows.length
      ? "Every trade id between the first and the last one held is held, or the exchange has shown that it has no such trade. To have this and all tables checked by an independent reader:"
      : "As soon as there are trades, this page shows whether any is missing.";
    element.replaceChildren(title, text, ...(rows.length ? [command(`cryptopulse audit --lake ${quoted(lake)}`)] : []));
    return;
  }
  const names = bad.slice(0, 3).map((row) => row.symbol).join(", ");
  title.textContent = `${format.count(missing)} ${missing === 1 ? "trade is" : "trades are"} missing`;
  text.textContent =
    `Of ${names}${bad.length > 3 ? ` and ${bad.length - 3} more` : ""}. While the producer runs it fetches them by itself, the newest first. ` +
    "What stays missing can be looked at, and fetched by hand:";
  const since = Math.min(...bad.map((row) => row.since ?? Date.now()));
  // A hole is counted in the hour of the trade above it, so it begins in that hour or before.
  const from = new Date(since - 3_600_000).toISOString().slice(0, 16);
  element.replaceChildren(
    title,
    text,
    command(`cryptopulse audit --lake ${quoted(lake)} ${bad.length === 1 ? `--product ${bad[0].symbol}` : ""}`.trim()),
    command(`cryptopulse backfill ${bad.slice(0, 6).map((row) => row.symbol).join(" ")} --from ${from} --lake ${quoted(lake)}`),
  );
}

function quoted(text) {
  return /^[\w./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function command(text) {
  const line = document.createElement("div");
  line.className = "cp-command";
  const code = Object.assign(document.createElement("code"), { textContent: text });
  const copy = Object.assign(document.createElement("button"), { className: "cp-button", type: "button", textContent: "Copy" });
  copy.setAttribute("aria-label", `Copy: ${text}`);
  copy.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard over plain HTTP: at least it is selected
      copy.textContent = "Selected";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  };
  line.append(code, copy);
  return line;
}
