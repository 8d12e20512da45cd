// The pipeline: how long each hop takes, how much goes through, how old the tables are, who runs, what could not be read.

import { answer, choice, panel } from "./answers.js";
import * as format from "./format.js";
import { figure } from "./parts.js";
import { mount as mountPlot } from "./plot.js";
import { Table, words } from "./table.js";

const MINUTE_MS = 60_000;
const PROCESSES = [
  { key: "name", label: "Process", sortKey: "place" },
  { key: "state", label: "State", kind: "badge" },
  { key: "up_s", label: "Up", kind: "seconds" },
  { key: "restarts", label: "Restarts", kind: "count" },
  { key: "age_s", label: "Last news", kind: "seconds", hide: "phone" },
  { key: "pid", label: "Pid", hide: "tablet" },
  { key: "told", label: "Figures" },
];
const FRESH = [
  { key: "table_name", label: "Table", sortKey: "place" },
  { key: "newest", label: "Newest row", kind: "time" },
  { key: "written_at", label: "Written", kind: "time", hide: "phone" },
  { key: "age_s", label: "Age", kind: "seconds" },
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
// Of a process's report: what is told beside it, in this order.
const TOLD = {
  connections: "connections",
  messages_per_s: "messages/s",
  trades_per_s: "trades/s",
  log_lag_messages: "behind",
  reconnects: "reconnects",
  ids_missing: "ids missing",
  ids_healed: "healed",
  lost_messages: "lost",
  quarantined_total: "quarantined",
  notifications_sent: "sent",
  notifications_waiting: "waiting",
  notifications_failed: "failed",
};
const HOPS = ["exchange to receive", "receive to log", "log to bronze", "bronze to silver", "receive to silver"];
const BARS_MAX = 16; // products in a chart of all; the rest goes together

export function mount(element, { body_max: bodyMax }) {
  element.classList.add("cp-pipeline");
  const strip = document.createElement("section");
  strip.className = "cp-strip";
  strip.setAttribute("aria-label", "Now");
  element.append(strip);
  const figures = {
    messages: figure(strip, "Messages/s", "Received by the producer in the last seconds"),
    trades: figure(strip, "Trades/s", "Stored by the processing in the last seconds"),
    lag: figure(strip, "Lag", "Messages in the log that are not in the tables yet"),
    silver: figure(strip, "Receive → silver p99", "Of the last seconds, as the processing measures it"),
    alert: figure(strip, "Receive → alert p99"),
    gold: figure(strip, "Receive → gold p99"),
    restarts: figure(strip, "Restarts", "How often the supervisor has started a process again"),
    quarantined: figure(strip, "Quarantined", "Messages that could not be read, of all that is stored"),
  };
  const ends = [];
  const tables = [];
  const table = (parent, columns, options) => {
    const made = new Table(parent, columns, options);
    tables.push(made);
    return made;
  };
  const plots = [];
  const plot = (parent, options) => {
    const place = document.createElement("div");
    parent.append(place);
    const made = mountPlot(place, { series: [], ...options });
    plots.push(made);
    return (series) => made.change({ ...options, series });
  };

  mountProcesses(element, { ends, table, figures });
  mountLatency(halves(element), { ends, plot });
  mountCharts(element, { ends, plot });
  mountFreshness(halves(element), { ends, table });
  mountQuarantine(element, { ends, table, figures, bodyMax });
  return {
    unmount() {
      for (const one of ends) one();
      for (const one of [...tables, ...plots]) one.unmount();
    },
  };
}

function halves(parent) {
  const found = parent.lastElementChild;
  if (found?.classList.contains("cp-halves") && found.children.length < 2) return found;
  const made = Object.assign(document.createElement("div"), { className: "cp-halves" });
  parent.append(made);
  return made;
}

function mountProcesses(element, { ends, table, figures }) {
  const place = panel(element, "Processes", "Those that have run on this machine");
  const rows = table(place.body, PROCESSES, { label: "Processes", keyOf: (row) => row.name, sort: { key: "name", down: false } });
  const error = Object.assign(document.createElement("p"), { className: "cp-fault cp-process-fault", hidden: true });
  place.body.append(error);
  ends.push(
    answer("processes", {
      told: (text) => text && place.say(text),
      handler: (_none, { processes, at_ms: atMs }) => {
        // This server is one of them, and may be alone here.
        place.say(
          processes.some((one) => one.name !== "dashboard") ? "" : "The pipeline runs elsewhere, or not at all: none of its processes has run on this machine. “cryptopulse status” shows them where it runs.",
        );
        rows.replace(
          processes.map((one, at) => ({
            ...one,
            place: at,
            state: one.state.toUpperCase(),
            up_s: ["running", "silent"].includes(one.state) ? (atMs - one.started_at) / 1000 : null,
            age_s: (atMs - one.updated_at) / 1000,
            told: told(one.report),
          })),
        );
        const failed = processes.filter((one) => one.error);
        error.textContent = failed.map((one) => `${words(one.name)}: ${one.error}`).join(" ");
        error.hidden = !failed.length;
        showNow(figures, processes);
      },
    }),
  );
}

function told(report) {
  const parts = Object.entries(TOLD).filter(([name]) => typeof report[name] === "number" && (report[name] || ["connections", "trades_per_s", "messages_per_s"].includes(name)));
  if (report.url && report.port) parts.unshift(["url", report.url]);
  return parts.map(([name, text]) => (name === "url" ? text : `${format.count(report[name])} ${report[name] === 1 ? text.replace(/(?<!\/)s$/, "") : text}`)).join(", ");
}

function showNow(figures, processes) {
  const of = (name) => processes.find((one) => one.name === name && one.state === "running")?.report;
  const producer = of("producer");
  const processing = of("processing");
  const ms = (hop) => {
    const value = processing?.latency_ms?.[hop]?.p99;
    return format.known(value) ? `${format.count(value)}\u202fms` : format.NONE;
  };
  figures.messages(format.count(producer?.messages_per_s));
  figures.trades(format.count(processing?.trades_per_s));
  figures.lag(format.count(processing?.log_lag_messages));
  figures.silver(ms("receive_to_silver"));
  figures.alert(ms("receive_to_alert"));
  figures.gold(ms("receive_to_gold"));
  const restarts = processes.reduce((all, one) => all + one.restarts, 0);
  figures.restarts(processes.some((one) => one.name !== "dashboard") ? format.count(restarts) : format.NONE, restarts ? "down" : undefined);
}

function mountLatency(parent, { ends, plot }) {
  const place = panel(parent, "Latency of each hop", "Of the live trades of the last 10 minutes, by minute");
  const draw = plot(place.body, { kind: "line", x: "time", stepMs: MINUTE_MS, unit: "ms", height: 250 });
  let rows = [];
  let column = "p99_ms";
  const show = () =>
    draw(HOPS.filter((hop) => rows.some((row) => row.hop === hop)).map((hop) => ({ name: hop.replace(" to ", " → "), points: rows.filter((row) => row.hop === hop).map((row) => [row.minute, row[column]]) })));
  choice(place.tools, "Which", [["p50_ms", "p50", "Half of them took at most this"], ["p99_ms", "p99", "All but a hundredth took at most this"]], column, (name) => {
    column = name;
    show();
  });
  ends.push(answer("latency_by_hop", { handler: (found) => ((rows = found), show()), told: place.say, empty: "No trade has come live yet." }));
}

function mountCharts(element, { ends, plot }) {
  const row = halves(element);
  const minutes = panel(row, "Trades a minute", "Of the last 3 hours; the four products with most, and the others");
  const drawMinutes = plot(minutes.body, { kind: "bar", x: "time", stepMs: MINUTE_MS, unit: "count", stack: true, height: 250 });
  ends.push(
    answer("trades_a_minute", {
      handler: (rows) => {
        const minutes = [...new Set(rows.map((row) => row.window_start))];
        drawMinutes(
          bySymbol(rows).map(([symbol, own]) => {
            const counts = new Map(own.map((one) => [one.window_start, one.trade_count]));
            return { name: symbol, points: minutes.map((minute) => [minute, counts.get(minute) ?? 0]) }; // stacks need all
          }),
        );
      },
      told: minutes.say,
      empty: "No trade yet.",
    }),
  );
  const second = halves(element);
  const volume = panel(second, "Volume of the last 24 hours", "In each product's quote currency");
  const drawVolume = plot(volume.body, { kind: "bar", x: "name", unit: "amount", height: 250 });
  ends.push(
    answer("volume_by_asset", {
      handler: (rows) => drawVolume([{ name: "Volume", color: "line-1", points: few(rows, "notional").map((one) => [one.symbol, one.notional]) }]),
      told: volume.say,
      empty: "No trade yet.",
    }),
  );
  const sentiment = panel(second, "Buying and selling in the last hour", "Trades by the taker's side");
  const drawSentiment = plot(sentiment.body, { kind: "bar", x: "name", unit: "count", stack: true, height: 250 });
  ends.push(
    answer("sentiment", {
      handler: (rows) => {
        const shown = [...rows].sort((a, b) => b.buy_count + b.sell_count - a.buy_count - a.sell_count).slice(0, BARS_MAX);
        drawSentiment([
          { name: "Bought", color: "up", points: shown.map((one) => [one.symbol, one.buy_count]) },
          { name: "Sold", color: "down", points: shown.map((one) => [one.symbol, one.sell_count]) },
        ]);
      },
      told: sentiment.say,
      empty: "No trade yet.",
    }),
  );
}

// The largest rows and one for all others.
function few(rows, name) {
  if (rows.length <= BARS_MAX) return rows;
  const rest = rows.slice(BARS_MAX - 1);
  return [...rows.slice(0, BARS_MAX - 1), { symbol: `${rest.length} more`, [name]: rest.reduce((all, row) => all + row[name], 0) }];
}

// Rows by symbol, those with most trades first, "others" last.
function bySymbol(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.symbol, [...(found.get(row.symbol) ?? []), row]);
  const size = ([name, own]) => (name === "others" ? -1 : own.reduce((all, row) => all + row.trade_count, 0));
  return [...found].sort((a, b) => size(b) - size(a));
}

function mountFreshness(parent, { ends, table }) {
  const place = panel(parent, "Freshness", "When each table was last written to");
  const shown = table(place.body, FRESH, { label: "Freshness", keyOf: (row) => row.table_name, sort: { key: "table_name", down: false } });
  let rows = [];
  let askedMs = 0;
  const show = () => shown.update(rows.map((row, at) => ({ ...row, place: at, age_s: format.known(row.age_s) ? row.age_s + (performance.now() - askedMs) / 1000 : null })));
  const timer = setInterval(show, 1000); // ages go on between two answers
  ends.push(
    () => clearInterval(timer),
    answer("data_freshness", {
      handler: (found) => {
        rows = found;
        askedMs = performance.now();
        show();
      },
      told: place.say,
    }),
  );
}

function mountQuarantine(element, { ends, table, figures, bodyMax }) {
  const place = panel(halves(element), "Quarantine by reason", "Messages that can't be a trade and are no known control message");
  const reasons = table(place.body, REASONS, { label: "Reasons", keyOf: (row) => row.reason, sort: { key: "messages", down: true } });
  const below = panel(element, "Quarantined messages", "The 50 newest, as they were received");
  const messages = table(below.body, MESSAGES, { label: "Quarantined messages", keyOf: (row) => `${row.partition} ${row.offset}`, href: (row) => `#message-${row.partition}-${row.offset}`, sort: { key: "received_time", down: true } });
  const whole = document.createElement("pre");
  whole.className = "cp-message";
  whole.tabIndex = 0;
  whole.hidden = true;
  below.body.append(whole);
  let rows = [];
  const open = () => {
    const row = rows.find((one) => `#message-${one.partition}-${one.offset}` === location.hash);
    whole.hidden = !row;
    if (!row) return;
    const cut = row.bytes > bodyMax ? `\n… (${format.count(row.bytes)} bytes; the first ${format.count(bodyMax)} are shown)` : "";
    // As text: whatever is in it, it is nothing but letters here.
    whole.textContent = `${row.reason}\npartition ${row.partition}, offset ${row.offset}\n\n${row.body}${cut}`;
    for (const [key, { tr }] of messages.rows) tr.setAttribute("aria-selected", String(key === `${row.partition} ${row.offset}`));
  };
  addEventListener("hashchange", open);
  ends.push(
    () => removeEventListener("hashchange", open),
    answer("quarantine", {
      handler: (found, { reasons: counted }) => {
        rows = found;
        messages.replace(found);
        const byReason = counted.rows.map((values) => Object.fromEntries(counted.columns.map((name, at) => [name, values[at]])));
        reasons.replace(byReason);
        const all = byReason.reduce((sum, row) => sum + row.messages, 0);
        figures.quarantined(format.count(all), all ? "down" : undefined);
        open();
      },
      told: (text) => {
        place.say(text);
        below.say(text);
      },
      empty: "None: every message could be read.",
    }),
  );
}
