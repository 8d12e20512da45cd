// The pipeline page: latency of each hop, throughput, age of the tables, processes, quarantined messages.

import { toObjects } from "./api.js";
import { currentHash, h, onHash, setNote } from "./dom.js";
import * as format from "./format.js";
import { messageHash } from "./links.js";
import { choice, figures, halves, panel, showQuery, words } from "./panels.js";
import { Plot } from "./plot.js";
import { Table } from "./table.js";

const LIVE_MS = 3_600_000; // a longer latency was not live: a replayed recording, or a log that was read again
const PROCESSES = [
  { key: "name", label: "Process", sortKey: "place" },
  { key: "state", label: "State", kind: "badge" },
  { key: "up_s", label: "Up", kind: "seconds" },
  { key: "restarts", label: "Restarts", kind: "count" },
  { key: "age_s", label: "Last report", kind: "seconds", hide: "phone" },
  { key: "pid", label: "Pid", hide: "tablet" },
  { key: "metrics", label: "Figures" },
];
const FRESH = [
  { key: "table_name", label: "Table", sortKey: "place" },
  { key: "newest", label: "Newest row", kind: "time", hide: "phone" },
  { key: "data_age_s", label: "Data age", kind: "seconds", title: "Since the newest trade or window in it" },
  { key: "written_at", label: "Written", kind: "time", hide: "phone" },
  { key: "age_s", label: "Load age", kind: "seconds", title: "Since it was last written to" },
];
const MESSAGES = [
  { key: "received_time", label: "Received", kind: "time" },
  { key: "reason", label: "Reason" },
  { key: "partition_key", label: "Product", hide: "phone" },
  { key: "source", label: "Source", hide: "tablet" },
  { key: "bytes", label: "Bytes", kind: "count", hide: "phone" },
  { key: "body", label: "Message", sortable: false },
];
const REASONS = [
  { key: "reason", label: "Reason" },
  { key: "messages", label: "Messages", kind: "count" },
  { key: "first", label: "First", kind: "time", hide: "phone" },
  { key: "last", label: "Last", kind: "time" },
];
// The figures of a process's report that are shown beside it, in this order.
const METRICS = {
  connections: "connections", messages_per_s: "messages/s", trades_per_s: "trades/s", log_lag_messages: "behind",
  reconnects: "reconnects", products_silent: "products silent", products_refused: "products refused",
  ids_missing: "ids missing", ids_healed: "healed", lost_messages: "lost", quarantined_total: "quarantined",
  notifications_sent: "sent", notifications_waiting: "waiting", notifications_failed: "failed",
};
const SHOWN_AT_ZERO = ["connections", "trades_per_s", "messages_per_s"];
const HOPS = ["exchange to receive", "receive to log", "log to bronze", "bronze to silver", "receive to silver"];
const BARS_MAX = 16; // most products in a bar chart

export function mount(element, { body_max: bodyMax }) {
  element.classList.add("cp-pipeline");
  const totals = figures(element, "Now", {
    messages: ["Messages/s", "Received by the producer in the last seconds"],
    trades: ["Trades/s", "Stored by the processing in the last seconds"],
    lag: ["Lag", "Messages in the log that are not in the tables yet"],
    silver: ["Receive → silver p99", "Of the last seconds, as the processing measures it"],
    alert: ["Receive → alert p99"],
    gold: ["Receive → gold p99"],
    restarts: ["Restarts", "How often the supervisor has started a process again"],
    quarantined: ["Quarantined", "Messages that could not be read, of all that is stored"],
  });
  const ends = [];
  const query = (...values) => ends.push(showQuery(...values));
  const unmountLater = (part) => {
    ends.push(() => part.unmount());
    return part;
  };
  const table = (...values) => unmountLater(new Table(...values));
  const plot = (...values) => unmountLater(new Plot(...values));

  showProcesses(panel(element, "Processes", "Those that have run on this machine"), { query, table, totals });
  const first = halves(element);
  showLatency(panel(first, "Latency of each hop", "Of the live trades of the last 10 minutes, by minute"), { query, plot });
  const minutes = panel(first, "Trades a minute", "Of the last 3 hours; the four products with most, and the others");
  const minutesPlot = plot(minutes.body, { kind: "bar", x: "time", unit: "count", stack: true, height: 250 });
  query("trades_a_minute", {
    onRows: (rows) => {
      const times = [...new Set(rows.map((row) => row.window_start))];
      const bySymbol = new Map(); // sorted below: most trades first, "others" last
      for (const row of rows) bySymbol.set(row.symbol, [...(bySymbol.get(row.symbol) ?? []), row]);
      const size = ([name, own]) => (name === "others" ? -1 : own.reduce((all, row) => all + row.trade_count, 0));
      const series = [...bySymbol].sort((a, b) => size(b) - size(a)).map(([name, own]) => {
        const counts = new Map(own.map((one) => [one.window_start, one.trade_count]));
        return { name, points: times.map((time) => [time, counts.get(time) ?? 0]) }; // stacked bars need a value at every time
      });
      minutesPlot.show(series);
    },
    onStatus: minutes.onStatus,
    empty: "No trade yet.",
  });
  const second = halves(element);
  const volume = panel(second, "Volume of the last 24 hours", "In each product's quote currency");
  const volumePlot = plot(volume.body, { kind: "bar", x: "name", unit: "amount", height: 250 });
  query("volume_by_asset", {
    onRows: (rows) => {
      const rest = rows.length > BARS_MAX ? rows.splice(BARS_MAX - 1) : [];
      if (rest.length) rows.push({ symbol: `${rest.length} more`, notional: rest.reduce((all, row) => all + row.notional, 0) });
      volumePlot.show([{ name: "Volume", color: "line-1", points: rows.map((one) => [one.symbol, one.notional]) }]);
    },
    onStatus: volume.onStatus,
    empty: "No trade yet.",
  });
  const sentiment = panel(second, "Buying and selling in the last hour", "Trades by the taker's side");
  const sentimentPlot = plot(sentiment.body, { kind: "bar", x: "name", unit: "count", stack: true, height: 250 });
  query("sentiment", {
    onRows: (rows) => {
      const shown = [...rows].sort((a, b) => b.buy_count + b.sell_count - a.buy_count - a.sell_count).slice(0, BARS_MAX);
      sentimentPlot.show([
        { name: "Bought", color: "up", points: shown.map((one) => [one.symbol, one.buy_count]) },
        { name: "Sold", color: "down", points: shown.map((one) => [one.symbol, one.sell_count]) },
      ]);
    },
    onStatus: sentiment.onStatus,
    empty: "No trade yet.",
  });
  const third = halves(element);
  showFreshness(panel(third, "Freshness", "When each table was last written to"), { ends, query, table });
  const reasons = panel(third, "Quarantine by reason", "Messages that can't be a trade and are no known control message");
  const messages = panel(element, "Quarantined messages", "The 50 newest, as they were received");
  showQuarantine(reasons, messages, { ends, query, table, totals, bodyMax });
  return { unmount: () => ends.forEach((end) => end()) };
}

function showProcesses({ body, onStatus }, { query, table, totals }) {
  const rows = table(body, PROCESSES, { label: "Processes", keyOf: (row) => row.name, sort: { key: "name", down: false } });
  const fault = h("p", { className: "cp-fault cp-process-fault", hidden: true });
  body.append(fault);
  query("processes", {
    onStatus: (text) => text && onStatus(text),
    onRows: (_none, { processes, at_ms: atMs }) => {
      // This server is one of the processes, and may be the only one on this machine.
      const isElsewhere = processes.every((one) => one.name === "dashboard");
      onStatus(isElsewhere ? "The pipeline runs elsewhere, or not at all: none of its processes has run on this machine. “cryptopulse status” shows them where it runs." : "");
      rows.replace(
        processes.map((one, at) => ({
          ...one,
          place: at,
          state: one.state.toUpperCase(),
          up_s: ["running", "silent"].includes(one.state) ? (atMs - one.started_at) / 1000 : null,
          age_s: (atMs - one.updated_at) / 1000,
          metrics: metricsText(one.report),
        })),
      );
      setNote(fault, processes.filter((one) => one.error).map((one) => `${words(one.name)}: ${one.error}`).join(" "));
      const reportOf = (name) => processes.find((one) => one.name === name && one.state === "running")?.report;
      const processing = reportOf("processing");
      totals.messages(format.count(reportOf("producer")?.messages_per_s));
      totals.trades(format.count(processing?.trades_per_s));
      totals.lag(format.count(processing?.log_lag_messages));
      for (const name of ["silver", "alert", "gold"]) {
        const ms = processing?.latency_ms?.[`receive_to_${name}`]?.p99;
        totals[name](format.known(ms) ? `${format.count(ms)}\u202fms` : format.NONE);
      }
      const restarts = processes.reduce((all, one) => all + one.restarts, 0);
      totals.restarts(isElsewhere ? format.NONE : format.count(restarts), restarts ? "down" : undefined);
    },
  });
}

// "3 connections, 1 reconnect": singular for one, except in a rate.
function metricsText(report) {
  const parts = Object.entries(METRICS)
    .filter(([name]) => typeof report[name] === "number" && (report[name] || SHOWN_AT_ZERO.includes(name)))
    .map(([name, text]) => `${format.count(report[name])} ${report[name] === 1 ? text.replace(/(?<!\/)s$/, "") : text}`);
  return [...(report.url && report.port ? [report.url] : []), ...parts].join(", ");
}

function showLatency({ body, tools, onStatus }, { query, plot }) {
  const latencyPlot = plot(body, { kind: "line", x: "time", unit: "ms", height: 250 });
  const note = h("p", { className: "cp-told", hidden: true });
  body.append(note);
  let rows = [];
  let column = "p99_ms";
  const show = () => {
    const isLive = (row) => Math.abs(row[column]) < LIVE_MS;
    const hops = HOPS.map((hop) => ({ name: hop.replace(" to ", " → "), own: rows.filter((row) => row.hop === hop) }));
    const series = hops.map(({ name, own }) => ({ name, points: own.filter(isLive).map((row) => [row.minute, row[column]]) }));
    latencyPlot.show(series.filter(({ points }) => points.length));
    const late = hops.filter(({ own }) => !own.every(isLive));
    const longest = Math.max(...late.flatMap(({ own }) => own.map((row) => Math.abs(row[column]))));
    setNote(note, late.length ? `Not drawn: ${late.map(({ name }) => name).join(", ")}, up to ${format.age(longest / 1000)}. These messages were not live: they were replayed.` : "");
  };
  choice(tools, "Which", [["p50_ms", "p50", "Half of them took at most this"], ["p99_ms", "p99", "All but a hundredth took at most this"]], column, (name) => {
    column = name;
    show();
  });
  query("latency_by_hop", { onRows: (found) => ((rows = found), show()), onStatus, empty: "No trade has come live yet." });
}

function showFreshness({ body, onStatus }, { ends, query, table }) {
  const shown = table(body, FRESH, { label: "Freshness", keyOf: (row) => row.table_name, sort: { key: "table_name", down: false } });
  let rows = [];
  let readMs = 0;
  const show = () => {
    const laterS = (performance.now() - readMs) / 1000;
    shown.update(
      rows.map((row, place) => {
        const ageS = format.known(row.age_s) ? row.age_s + laterS : null;
        return { ...row, place, age_s: ageS, data_age_s: ageS === null ? null : ageS + (row.written_at - row.newest) / 1000 };
      }),
    );
  };
  const timer = setInterval(show, 1000); // ages grow between two results
  ends.push(() => clearInterval(timer));
  query("data_freshness", {
    onRows: (found) => {
      rows = found;
      readMs = performance.now();
      show();
    },
    onStatus,
  });
}

function showQuarantine(reasons, messages, { ends, query, table, totals, bodyMax }) {
  const reasonTable = table(reasons.body, REASONS, { label: "Reasons", keyOf: (row) => row.reason, sort: { key: "messages", down: true } });
  const messageTable = table(messages.body, MESSAGES, { label: "Quarantined messages", keyOf: messageHash, href: messageHash, sort: { key: "received_time", down: true } });
  const whole = h("pre", { className: "cp-message", tabIndex: 0, hidden: true });
  messages.body.append(whole);
  const open = (hash) => {
    const row = messageTable.rows.get(`#${hash}`)?.row;
    const isNew = whole.hidden && row;
    whole.hidden = !row;
    for (const [key, { tr }] of messageTable.rows) tr.setAttribute("aria-selected", String(key === `#${hash}`));
    if (!row) return;
    const cut = row.bytes > bodyMax ? `\n… (${format.count(row.bytes)} bytes; the first ${format.count(bodyMax)} are shown)` : "";
    // Set as text, so that HTML in a message does no harm.
    whole.textContent = `${row.reason}\npartition ${row.partition}, offset ${row.offset}\n\n${row.body}${cut}`;
    if (isNew) whole.scrollIntoView({ block: "nearest" });
  };
  ends.push(onHash(open));
  query("quarantine", {
    onRows: (rows, { reasons: counted }) => {
      messageTable.replace(rows);
      const byReason = toObjects(counted);
      reasonTable.replace(byReason);
      const all = byReason.reduce((sum, row) => sum + row.messages, 0);
      totals.quarantined(format.count(all), all ? "down" : undefined);
      open(currentHash());
    },
    onStatus: (text) => {
      reasons.onStatus(text);
      messages.onStatus(text);
    },
    empty: "None: every message could be read.",
  });
}
