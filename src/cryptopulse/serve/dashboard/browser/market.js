// The market: every product, live.

import { h, replaceAddress, setText } from "./dom.js";
import * as format from "./format.js";
import { productLink } from "./links.js";
import { subscribe, watchState } from "./live.js";
import { emptyText, figures, words } from "./panels.js";
import { Table } from "./table.js";

const COLUMNS = [
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "price", label: "Last", kind: "price", flash: true, title: "Price of the newest trade" },
  { key: "change_1m", label: "1 m", kind: "percent", hide: "phone", title: "Change over a minute" },
  { key: "change_5m", label: "5 m", kind: "percent", title: "Change over 5 minutes" },
  { key: "change_1h", label: "1 h", kind: "percent", title: "Change over an hour" },
  { key: "change_24h", label: "24 h", kind: "percent", hide: "phone", title: "Change over 24 hours" },
  { key: "spark", label: "Last hour", kind: "spark", hide: "small", sortKey: "change_1h", title: "Price by the minute; sorts by the change" },
  { key: "notional_24h", label: "Volume 24 h", kind: "amount", hide: "phone", title: "In the quote currency" },
  { key: "range", label: "Low – high 24 h", kind: "range", sortKey: "place", hide: "tablet", title: "Where the price stands between the lowest and the highest" },
  { key: "trades_24h", label: "Trades 24 h", kind: "count", hide: "tablet" },
  { key: "buy_share_1h", label: "Buyers 1 h", kind: "share", hide: "tablet", title: "Share of the volume that takers bought" },
];
const ACROSS = [
  { key: "market", label: "Across venues", kind: "symbol", title: "Base and quote; dollar coins count as the dollar" },
  { key: "spread_text", label: "Spread", kind: "measured", sortKey: "spread", title: "The highest price less the lowest, as a percentage of the lowest" },
];
const SPARKS_EVERY_MS = 1000;

export function mount(element) {
  const rows = []; // index: the product's number
  let columns = [];
  let state = null;

  element.classList.add("cp-market");
  const totals = figures(element, "All products", {
    products: ["Products"],
    rising: ["Rising 1 h"],
    falling: ["Falling 1 h"],
    volume: ["Volume 24 h"],
    trades: ["Trades 24 h"],
    newest: ["Newest trade"],
  });
  const across = h("section", { className: "cp-bounded cp-across", "aria-label": "Across venues", hidden: true });
  let compared = null; // the table of markets at several venues, whose columns are the venues
  const showAcross = (markets) => {
    const venues = [...new Set(markets.flatMap((one) => Object.keys(one.prices)))].sort();
    if (venues.length && across.dataset.venues !== venues.join()) {
      compared?.unmount();
      across.replaceChildren();
      across.dataset.venues = venues.join();
      const prices = venues.map((key) => ({ key, label: words(key), kind: "price", flash: true, title: "Its last price, if it traded in the last 5 minutes" }));
      compared = new Table(across, [...ACROSS, ...prices], { label: "Across venues", keyOf: (row) => row.market, href: (row) => `/?q=${encodeURIComponent(row.market.split("/")[0])}`, sort: { key: "spread_text", down: true } });
    }
    across.hidden = !markets.length;
    compared?.replace(markets.map(({ prices, ...row }) => ({ ...row, ...prices, direction: "flat", spread_text: format.percent(row.spread, 3).replace("+", "") })));
  };
  element.append(across);
  const input = h("input", { id: "cp-filter", type: "search", placeholder: "Filter", "aria-label": "Filter the products", autocomplete: "off", spellcheck: false });
  const shown = h("output", { id: "cp-shown", for: "cp-filter" });
  element.append(h("div", { className: "cp-tools" }, input, h("kbd", { textContent: "f" }), shown));
  const table = new Table(element, COLUMNS, {
    label: "Market",
    keyOf: (row) => row.symbol,
    href: (row) => productLink(row.symbol),
    sort: { key: "notional_24h", down: true },
    storage: "cryptopulse.market.sort",
    empty: () => emptyText(state),
    onArranged: (some, all) => setText(shown, !all ? "" : some === all ? `${all} products` : `${some} of ${all}`),
  });

  input.value = new URLSearchParams(location.search).get("q") ?? "";
  const filter = () => {
    table.setFilter(input.value);
    const query = input.value.trim();
    replaceAddress({ query: new URLSearchParams(query ? { q: query } : {}) });
  };
  input.oninput = filter;
  table.filteredBy(input, filter);
  if (input.value) table.setFilter(input.value);

  const set = (row, values) => {
    columns.forEach((name, place) => (row[name] = values[place]));
    row.range = format.known(row.low_24h) ? [row.low_24h, row.high_24h, row.price] : null;
    row.place = row.high_24h > row.low_24h ? (row.price - row.low_24h) / (row.high_24h - row.low_24h) : null;
    return row;
  };
  const showTotals = () => {
    if (!rows.length) return;
    const sum = (name) => rows.reduce((all, row) => all + (row[name] ?? 0), 0);
    totals.products(format.count(rows.length));
    const isKnown = rows.some((row) => format.known(row.change_1h)); // only after an hour of data
    for (const [name, way] of [["rising", "up"], ["falling", "down"]]) {
      const number = rows.filter((row) => format.direction(row.change_1h) === way).length;
      totals[name](isKnown ? String(number) : format.NONE, isKnown ? way : undefined);
    }
    totals.volume(format.amount(sum("notional_24h")));
    totals.trades(format.count(sum("trades_24h")));
  };
  // The last point of a sparkline is the current price. Sparklines and sums are drawn at most once a second.
  const timer = setInterval(() => {
    const due = rows.filter((row) => format.known(row.price) && row.spark[row.spark.length - 1] !== row.price);
    for (const row of due) row.spark[row.spark.length - 1] = row.price;
    table.update(due);
    showTotals();
  }, SPARKS_EVERY_MS);
  const ends = [
    subscribe("market", (message) => {
      if (message.kind === "snapshot") {
        columns = message.columns;
        rows.length = 0;
        message.symbols.forEach((symbol, number) => {
          const row = { symbol, decimals: message.decimals[number], spark: message.sparks[number] };
          rows.push(set(row, message.rows[number]));
        });
        table.replace(rows);
        showTotals();
      } else {
        table.update(message.rows.map(([number, ...values]) => set(rows[number], values)));
      }
      showAcross(message.across);
      totals.newest(message.now_us ? format.stamp(message.now_us / 1000) : format.NONE);
      element.dataset.loaded = message.loaded_us ?? "";
    }),
    watchState((now) => {
      state = now;
      if (!rows.length) table.arrange(true);
    }),
    () => clearInterval(timer),
    () => [table, compared].forEach((one) => one?.unmount()),
  ];
  return { unmount: () => ends.forEach((end) => end()) };
}
