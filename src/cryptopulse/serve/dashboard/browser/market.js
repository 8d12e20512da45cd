// The market: every product, live.

import { subscribe, watchState } from "./live.js";
import * as format from "./format.js";
import { Table } from "./table.js";
import { emptyText, figure } from "./parts.js";

const COLUMNS = [
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "price", label: "Last", kind: "price", flash: true, title: "Price of the newest trade" },
  { key: "change_1m", label: "1 m", kind: "percent", hide: "phone", title: "Change over a minute" },
  { key: "change_5m", label: "5 m", kind: "percent", title: "Change over 5 minutes" },
  { key: "change_1h", label: "1 h", kind: "percent", title: "Change over an hour" },
  { key: "change_24h", label: "24 h", kind: "percent", hide: "phone", title: "Change over 24 hours" },
  {
    key: "spark",
    label: "Last hour",
    kind: "spark",
    sortKey: "change_1h",
    title: "Price by the minute; sorts by the change",
  },
  { key: "notional_24h", label: "Volume 24 h", kind: "amount", hide: "phone", title: "In the quote currency" },
  {
    key: "range",
    label: "Low – high 24 h",
    kind: "range",
    sortKey: "place",
    hide: "tablet",
    title: "Where the price stands between the lowest and the highest",
  },
  { key: "trades_24h", label: "Trades 24 h", kind: "count", hide: "tablet" },
  {
    key: "buy_share_1h",
    label: "Buyers 1 h",
    kind: "share",
    hide: "tablet",
    title: "Share of the volume of which the taker bought",
  },
];
const SPARKS_EVERY_MS = 1000;

export function mount(element) {
  const rows = []; // by the product's number
  let columns = [];
  let state = null;

  element.classList.add("cp-market");
  const strip = document.createElement("section");
  strip.className = "cp-strip";
  strip.setAttribute("aria-label", "All products");
  const totals = {
    products: figure(strip, "Products"),
    rising: figure(strip, "Rising 1 h"),
    falling: figure(strip, "Falling 1 h"),
    volume: figure(strip, "Volume 24 h"),
    trades: figure(strip, "Trades 24 h"),
    newest: figure(strip, "Newest trade"),
  };
  const tools = document.createElement("div");
  tools.className = "cp-tools";
  tools.innerHTML =
    '<input id="cp-filter" type="search" placeholder="Filter" aria-label="Filter the products" autocomplete="off" ' +
    'spellcheck="false"><kbd>f</kbd><output id="cp-shown" for="cp-filter"></output>';
  element.append(strip, tools);
  const input = tools.querySelector("input");
  const shown = tools.querySelector("output");
  const table = new Table(element, COLUMNS, {
    label: "Market",
    keyOf: (row) => row.symbol,
    href: (row) => `${window.path_prefix ?? ""}/product/${encodeURIComponent(row.symbol)}`,
    sort: { key: "notional_24h", down: true },
    storage: "cryptopulse.market.sort",
    empty: () => emptyText(state),
    onArranged: (some, all) => {
      shown.textContent = !all ? "" : some === all ? `${all} products` : `${some} of ${all}`;
    },
  });

  input.value = new URLSearchParams(location.search).get("q") ?? "";
  const filter = () => {
    table.setFilter(input.value);
    const query = input.value.trim();
    history.replaceState(null, "", query ? `?q=${encodeURIComponent(query)}` : location.pathname);
  };
  input.oninput = filter;
  input.onkeydown = (event) => {
    if (event.key === "Escape") {
      input.value = "";
      filter();
      input.blur();
    } else if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      table.body.rows[0]?.focus();
    }
  };
  if (input.value) table.setFilter(input.value);

  const set = (row, values) => {
    columns.forEach((name, place) => (row[name] = values[place]));
    row.range = format.known(row.low_24h) ? [row.low_24h, row.high_24h, row.price] : null;
    row.place = row.range && row.range[1] > row.range[0] ? (row.price - row.range[0]) / (row.range[1] - row.range[0]) : null;
    return row;
  };
  const end = subscribe("market", (message) => {
    if (message.kind === "snapshot") {
      columns = message.columns;
      rows.length = 0;
      message.symbols.forEach((symbol, number) => {
        const row = { symbol, decimals: message.decimals[number], spark: message.sparks[number] };
        rows.push(set(row, message.rows[number]));
      });
      table.replace(rows);
    } else {
      table.update(message.rows.map(([number, ...values]) => set(rows[number], values)));
    }
    totals.newest(message.now_us ? format.clock(message.now_us / 1000) : format.NONE);
    element.dataset.loaded = message.loaded_us ?? "";
  });

  // The last point of a sparkline is the price; a drawing a second is enough, and so it is for the sums.
  const timer = setInterval(() => {
    const due = rows.filter((row) => format.known(row.price) && row.spark[row.spark.length - 1] !== row.price);
    for (const row of due) row.spark[row.spark.length - 1] = row.price;
    table.update(due);
    total();
  }, SPARKS_EVERY_MS);
  const total = () => {
    if (!rows.length) return;
    const sum = (name) => rows.reduce((all, row) => all + (row[name] ?? 0), 0);
    totals.products(format.count(rows.length));
    const isKnown = rows.some((row) => format.known(row.change_1h)); // not before the lake holds an hour
    for (const [name, way] of [["rising", "up"], ["falling", "down"]]) {
      const number = rows.filter((row) => format.direction(row.change_1h) === way).length;
      totals[name](isKnown ? String(number) : format.NONE, isKnown ? way : undefined);
    }
    totals.volume(format.amount(sum("notional_24h")));
    totals.trades(format.count(sum("trades_24h")));
  };
  const endState = watchState((now) => {
    state = now;
    if (!rows.length) table.arrange(true);
    else if (!totals.isTold) {
      totals.isTold = true;
      total();
    }
  });
  const pressed = (event) => {
    const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName ?? "");
    if (event.key !== "f" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    input.focus();
  };
  addEventListener("keydown", pressed);
  return {
    unmount() {
      end();
      endState();
      clearInterval(timer);
      removeEventListener("keydown", pressed);
      table.unmount();
    },
  };
}
