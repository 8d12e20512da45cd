// The completeness page: per product and hour the trade ids held, healed, absent at the exchange, and missing.

import { h } from "./dom.js";
import * as format from "./format.js";
import { Heatmap, legend, stateOf } from "./heatmap.js";
import { HoleDetails } from "./hole_details.js";
import { DAY_MS, HOUR_MS, holeHash, messageLink, productLink, timeHash } from "./links.js";
import { choice, figures, halves, panel, showQuery } from "./panels.js";
import { refusedIds, refusedWithin } from "./refused.js";
import { auditCommand, backfillCommand, commandLine, gradeOf, isFetched } from "./repair.js";
import { Table } from "./table.js";

const CONFLICTS = "Messages that tell a held trade with another price, size, side or time; the first copy is kept, these are in silver.quarantined_messages";
const PROOF = "ids: they are dense, so a hole is a fact; sequence: only the connection's messages are known to be whole, ids may have gaps; none: nothing is known";
const PRODUCTS = [
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "held", label: "Held", kind: "count", title: "Trade ids held, each once" },
  { key: "share_text", label: "Share", sortKey: "held_pct", title: "Of the ids from the first to the last one held" },
  { key: "missing", label: "Missing", kind: "count", title: "Neither held nor proved absent" },
  { key: "holes", label: "Holes", kind: "count", title: "Runs of ids between two that are held", hide: "phone" },
  { key: "healed", label: "Healed", kind: "count", title: "Came later, over REST" },
  { key: "absent", label: "Absent", kind: "count", title: "The exchange does not have them, as one of its pages shows", hide: "phone" },
  { key: "conflicts", label: "Conflicts", kind: "count", title: CONFLICTS, hide: "phone" },
  { key: "grade", label: "Proof", title: PROOF, hide: "phone" },
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

export function mount(element, { lake, path }) {
  const totals = figures(element, "All products", {
    complete: ["Complete products"],
    held: ["Ids held", "Trade ids held, each once"],
    missing: ["Missing", "Neither held nor proved absent"],
    holes: ["Holes", "Runs of ids that are not held"],
    healed: ["Healed", "Came later, over REST"],
    absent: ["Absent", "The exchange does not have them"],
    conflicts: ["Conflicts", CONFLICTS],
    share: ["Held", "Of the ids from each product's first to its last"],
  });
  const verdict = h("section", { className: "cp-verdict", role: "status" });
  const retained = h("p", { hidden: true });
  element.append(verdict, retained);

  const overview = panel(element, "By product and time", "Each cell is a product's hour or day, in UTC");
  const heatmap = new Heatmap(overview.body, { onOpen: (symbol, start, step) => (location.hash = timeHash(symbol, start, step)) });
  legend(overview.tools);
  let endOverview = null;
  const showSpan = (name) => {
    endOverview?.();
    endOverview = showQuery(name, {
      onRows: (rows) => heatmap.show(rows, name === "days" ? DAY_MS : HOUR_MS),
      onStatus: overview.onStatus,
      empty: "There is no hour with trades yet.",
    });
  };
  choice(overview.tools, "Span", [["hours", "48 hours"], ["days", "60 days"]], "hours", showSpan);
  showSpan("hours");

  let coverage = null;
  let ledger = null;
  let conflicts = [];
  let holes = [];
  let refused = new Map();
  const details = new HoleDetails(element, { path, lake, refusedOf: (symbol) => refused.get(symbol) });
  const products = panel(element, "Products", "From the first to the last id held of each");
  const row = halves(element, "cp-bounded");
  const newest = panel(row, "Holes", "The 100 newest runs of ids that are not held");
  const hours = panel(row, "Hours in which trades were missed", "The 100 newest, and what became of them");
  const tables = {
    products: new Table(products.body, PRODUCTS, { label: "Products", keyOf: (row) => row.symbol, href: (row) => productLink(row.symbol), sort: { key: "missing", down: true } }),
    holes: new Table(newest.body, HOLES, { label: "Holes", keyOf: (row) => `${row.symbol} ${row.first_missing_id}`, href: (row) => holeHash(row.symbol, row.first_missing_id, row.last_missing_id), sort: { key: "ids_missing", down: true } }),
    hours: new Table(hours.body, HOURS, { label: "Hours", keyOf: (row) => `${row.symbol} ${row.window_start}`, href: (row) => timeHash(row.symbol, row.window_start, HOUR_MS), sort: { key: "window_start", down: true } }),
  };
  const show = () => {
    if (!coverage || !ledger) return;
    const conflictsOf = new Map(conflicts.map((row) => [row.symbol, row.messages]));
    const hoursOf = new Map(ledger.map((row) => [row.symbol, row]));
    const rows = coverage.map((row) => {
      const own = hoursOf.get(row.symbol);
      return {
        ...row,
        grade: gradeOf(row.symbol),
        held: row.ids_held,
        healed: own?.healed_ids ?? 0,
        absent: own?.absent_ids ?? 0,
        conflicts: conflictsOf.get(row.symbol) ?? 0,
        missing: Math.max(row.ids_missing - (own?.absent_ids ?? 0), 0),
        refused: holes.filter((hole) => hole.symbol === row.symbol).flatMap((hole) => refusedWithin(refused.get(row.symbol), hole.first_missing_id, hole.last_missing_id)),
        from: own?.missing_from,
        to: own?.missing_to,
        share_text: share(row.ids_held, row.ids_held + row.ids_missing),
      };
    });
    tables.products.replace(rows);
    showVerdict(verdict, rows, lake, refused);
    if (!rows.length) return; // without rows there is no verdict
    const sum = (name) => rows.reduce((all, row) => all + row[name], 0);
    const missing = sum("missing");
    const complete = rows.filter((row) => !row.missing).length;
    totals.complete(`${complete} of ${rows.length}`, complete === rows.length ? "up" : undefined);
    for (const name of ["held", "holes", "healed", "absent"]) totals[name](format.count(sum(name)));
    totals.missing(format.count(missing), missing ? "down" : "up");
    const conflicting = conflicts.reduce((all, row) => all + row.messages, 0); // a message of several products has no symbol
    totals.conflicts(format.count(conflicting), conflicting ? "down" : "up");
    totals.share(share(sum("held"), sum("held") + missing));
  };
  const ends = [
    showQuery("completeness", { onRows: (rows) => ((coverage = rows), show()), onStatus: products.onStatus, empty: "There are no trades yet." }),
    showQuery("ledger", { onRows: (rows) => ((ledger = rows), show()) }),
    showQuery("retention", {
      onRows: (rows) => {
        retained.textContent = `Let go on purpose, and counted as held: ${rows.map((row) => `${row.table} until ${row.last_day}, ${format.count(row.rows)} rows`).join("; ")}.`;
        retained.hidden = !rows.length;
      },
    }),
    showQuery("conflicts", { onRows: (rows) => ((conflicts = rows), show()) }),
    showQuery("holes", {
      onRows: (rows) => {
        holes = rows;
        tables.holes.replace(rows);
        show();
      },
      onStatus: newest.onStatus,
      empty: "None: every id between two that are held is held.",
    }),
    showQuery("quarantine", {
      onRows: (rows) => {
        refused = refusedIds(rows);
        show();
        if (details.found) details.describe();
      },
    }),
    showQuery("incomplete_hours", {
      onRows: (rows) => tables.hours.replace(rows.map((row) => ({ ...row, state: stateOf(row).toUpperCase() }))),
      onStatus: hours.onStatus,
      empty: "None: no trade has ever been missed.",
    }),
  ];
  return {
    unmount() {
      for (const end of [endOverview, ...ends]) end();
      for (const part of [...Object.values(tables), heatmap, details]) part.unmount();
    },
  };
}

// A percentage that is never 100 while something is missing.
function share(held, all) {
  if (!all || held === all) return "100\u202f%";
  for (let digits = 2; digits < 10; digits++) {
    const text = ((100 * held) / all).toFixed(digits);
    if (Number(text) < 100) return `${text}\u202f%`;
  }
  return "99.9999999999\u202f%";
}

// Says in words what the figures mean, and what to do.
function showVerdict(element, rows, lake, refused) {
  const bad = rows.filter((row) => row.missing).sort((a, b) => b.missing - a.missing);
  const missing = bad.reduce((all, row) => all + row.missing, 0);
  const known = bad.flatMap((row) => row.refused.map((id) => refused.get(row.symbol).get(id)));
  const key = JSON.stringify([rows.length, bad.map((row) => [row.symbol, row.missing, row.from, row.to, row.refused])]);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.dataset.state = missing ? "missing" : rows.length ? "complete" : "empty";
  const title = h("strong");
  const text = h("p");
  const commands = [];
  if (!rows.length) {
    title.textContent = "No trades yet";
    text.textContent = "As soon as there are trades, this page shows whether any is missing.";
  } else if (!missing) {
    title.textContent = "Complete";
    const weak = rows.filter((row) => row.grade !== "ids").map((row) => row.symbol);
    const less = weak.length ? ` Of ${weak.slice(0, 3).join(", ")}${weak.length > 3 ? ` and ${weak.length - 3} more` : ""} that proves less: see Proof below.` : "";
    text.textContent = `Every trade id between the first and the last one held is held, or the exchange has shown that it has no such trade.${less} To have this and all tables checked by an independent reader:`;
    commands.push(auditCommand([], lake));
  } else {
    const names = bad.slice(0, 3).map((row) => row.symbol).join(", ");
    const symbols = bad.map((row) => row.symbol).sort();
    const fetchable = bad.filter((row) => row.missing > row.refused.length && isFetched(row.symbol));
    const times = fetchable.filter((row) => format.known(row.from));
    title.textContent = `${format.count(missing)} ${missing === 1 ? "trade is" : "trades are"} missing`;
    text.append(`Of ${names}${bad.length > 3 ? ` and ${bad.length - 3} more` : ""}. `);
    if (known.length) {
      const count = known.length === missing ? "All of them" : `${format.count(known.length)} of them`;
      text.append(`${count} ${known.length === 1 ? "was" : "were"} received and refused: a backfill does not help, `, h("a", { href: messageLink(known[0]), textContent: "their messages are in quarantine" }), ". ");
    }
    if (fetchable.length) text.append("While the producer runs it fetches what is missing by itself, the newest first. ");
    text.append(fetchable.length ? "What stays missing can be checked, and fetched by hand:" : "The audit names each with its reason:");
    commands.push(auditCommand(symbols.length === rows.length ? [] : symbols, lake));
    if (times.length) {
      const from = Math.min(...times.map((row) => row.from));
      const to = Math.max(...times.map((row) => row.to));
      commands.push(backfillCommand(fetchable.map((row) => row.symbol).sort(), from, to, lake));
    }
  }
  element.replaceChildren(title, text, ...commands.map(commandLine));
}
