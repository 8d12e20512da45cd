// Episodes as they come and those of the past, by the same filters; the chosen one beside them with its evidence.

import { ask } from "./answers.js";
import { EvidencePanel, span } from "./evidence.js";
import * as format from "./format.js";
import { subscribe, watchState } from "./live.js";
import { emptyText, figure } from "./parts.js";
import { Table } from "./table.js";

const COLUMNS = [
  { key: "opened_ms", label: "Opened", kind: "time", sortKey: "place" },
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "alert_type", label: "Type", kind: "badge" },
  { key: "price_change_pct", label: "Change", kind: "percent" },
  { key: "severity", label: "Severity", kind: "badge", sortKey: "rank" },
  { key: "state", label: "State", kind: "badge" },
  { key: "from_to", label: "From → to", hide: "tablet", sortable: false },
  { key: "lasted", label: "Lasted", hide: "phone", sortKey: "lasted_s" },
  { key: "rule", label: "Rule", hide: "tablet" },
];
const RANKS = { WARNING: 0, HIGH: 1, CRITICAL: 2 };
const SPANS = { "": null, "1h": 3600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000 };
const FILTERS = ["symbol", "alert_type", "severity", "rule", "state", "span"];
const NEW_MS = 4000; // how long a new one stands out

export class Feed {
  constructor(parent, { path, rules }) {
    this.path = path;
    this.live = new Map(); // alert_id → episode, as the topic tells
    this.past = new Map(); // what was read of the table by these filters
    this.isLast = false;
    this.rules = new Set(rules.map((rule) => rule.name));
    this.build(parent);
    this.readAddress();
    this.ends = [
      subscribe("alerts", (message) => this.take(message)),
      subscribe("products", (message) => this.offer(message.symbols)),
      watchState((now) => {
        this.state = now;
        if (!this.table.rows.size) this.table.arrange(true);
      }),
    ];
    this.hashed = () => this.open(decodeURIComponent(location.hash.slice(1)));
    this.pressed = (event) => this.key(event);
    addEventListener("hashchange", this.hashed);
    addEventListener("keydown", this.pressed);
    this.timer = setInterval(() => this.count(), 5000);
    this.chosen = decodeURIComponent(location.hash.slice(1));
    this.load(false);
  }

  build(parent) {
    const strip = document.createElement("section");
    strip.className = "cp-strip";
    strip.setAttribute("aria-label", "Alerts");
    this.totals = {
      open: figure(strip, "Open"),
      hour: figure(strip, "Last hour", "Episodes that opened within it"),
      day: figure(strip, "Last 24 h", "Episodes that opened within it"),
      critical: figure(strip, "Critical 24 h", "Four thresholds and more"),
      deepest: figure(strip, "Largest 24 h", "The largest change of the last 24 hours"),
    };
    this.form = document.createElement("form");
    this.form.className = "cp-tools cp-filters";
    this.form.setAttribute("aria-label", "Filters");
    this.form.innerHTML =
      '<input name="symbol" type="search" list="cp-symbols" placeholder="Product" aria-label="Product" autocomplete="off" spellcheck="false"><datalist id="cp-symbols"></datalist>' +
      select("alert_type", "Type", [["FLASH_CRASH", "Crashes"], ["PRICE_SURGE", "Surges"]], "All types") +
      select("severity", "Severity", [["CRITICAL", "Critical"], ["HIGH", "High"], ["WARNING", "Warning"]], "All severities") +
      select("rule", "Rule", [], "All rules") +
      select("state", "State", [["OPEN", "Open"], ["CLOSED", "Closed"]], "Open and closed") +
      select("span", "Time", [["1h", "Last hour"], ["24h", "Last 24 hours"], ["7d", "Last 7 days"], ["30d", "Last 30 days"]], "Any time") +
      '<button class="cp-button" type="reset">Clear</button><output id="cp-shown"></output>';
    this.form.onsubmit = (event) => event.preventDefault();
    this.form.onreset = () => setTimeout(() => this.filter());
    this.form.oninput = () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.filter(), 150);
    };
    const columns = document.createElement("div");
    columns.className = "cp-columns cp-wide";
    const list = document.createElement("div");
    columns.append(list);
    parent.append(strip, this.form, columns);
    const shown = this.form.querySelector("output");
    this.table = new Table(list, COLUMNS, {
      label: "Episodes",
      keyOf: (row) => row.alert_id,
      href: (row) => `#${encodeURIComponent(row.alert_id)}`,
      sort: { key: "opened_ms", down: true },
      empty: () => this.emptyText(),
      onArranged: (some) => {
        shown.textContent = some ? `${some}${this.isLast ? "" : "+"} ${some === 1 ? "episode" : "episodes"}` : "";
        this.mark();
      },
    });
    this.table.wrap.setAttribute("aria-live", "polite");
    this.more = Object.assign(document.createElement("button"), { className: "cp-button cp-more", type: "button", textContent: "Older episodes", hidden: true });
    this.more.onclick = () => this.load(true);
    this.said = Object.assign(document.createElement("p"), { className: "cp-empty", hidden: true });
    list.append(this.more, this.said);
    this.evidence = new EvidencePanel(columns, { path: this.path, onClose: () => this.choose("") });
    this.evidence.element.hidden = true;
    this.offerRules();
  }

  // Filters in the address, so that a link shows what was meant.
  readAddress() {
    const given = new URLSearchParams(location.search);
    for (const name of FILTERS) {
      const value = given.get(name);
      if (!value) continue;
      if (name === "rule" && !this.rules.has(value)) {
        this.rules.add(value);
        this.offerRules();
      }
      this.form.elements[name].value = value;
    }
    this.showMatching();
  }

  filters() {
    return Object.fromEntries(FILTERS.map((name) => [name, this.form.elements[name].value.trim()]));
  }

  filter() {
    const given = Object.entries(this.filters()).filter(([, value]) => value);
    history.replaceState(null, "", `${location.pathname}${given.length ? `?${new URLSearchParams(given)}` : ""}${location.hash}`);
    this.showMatching();
    this.load(false);
  }

  showMatching() {
    const { symbol, span: spanName, ...equal } = this.filters();
    const wanted = symbol.toUpperCase();
    const seconds = SPANS[spanName];
    const since = seconds ? (Date.now() - seconds * 1000) * 1000 : 0;
    this.table.setMatch(
      (row) => row.symbol.includes(wanted) && row.opened_at >= since && Object.entries(equal).every(([name, value]) => !value || row[name] === value),
    );
  }

  // Episodes of the table by the filters: the newest, or those before the oldest that is shown.
  async load(isMore) {
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    const { symbol, span: spanName, ...equal } = this.filters();
    const query = new URLSearchParams(Object.entries(equal).filter(([, value]) => value));
    // A part of an id chooses products on this side; the server takes whole ids.
    for (const id of this.symbols?.filter((one) => one.includes(symbol.toUpperCase())).slice(0, 20) ?? []) if (symbol) query.append("symbol", id);
    if (SPANS[spanName]) query.set("start", Date.now() - SPANS[spanName] * 1000);
    if (isMore && this.oldest) {
      query.set("opened_before", this.oldest.opened_at);
      query.set("id_before", this.oldest.alert_id);
    }
    this.more.disabled = true;
    try {
      const { rows, is_last } = await ask(`${this.path}/episodes?${query}`, { signal: loading.signal });
      this.isLast = is_last;
      this.oldest = rows[rows.length - 1] ?? this.oldest;
      for (const row of rows) this.past.set(row.alert_id, row);
      this.say("");
      this.showAll();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.say(`Older episodes could not be read: ${error.message}`);
    }
    this.isAsked = true;
    this.more.disabled = false;
    this.more.hidden = this.isLast || !this.oldest;
    this.table.arrange(true);
  }

  take(message) {
    const known = this.isTold ? new Set(this.live.keys()) : null;
    if (message.kind === "snapshot") this.live.clear();
    for (const id of message.gone ?? []) {
      this.live.delete(id);
      this.past.delete(id);
    }
    for (const row of message.rows) {
      this.live.set(row.alert_id, row);
      if (!this.rules.has(row.rule)) {
        this.rules.add(row.rule);
        this.offerRules();
      }
    }
    this.isTold = true;
    this.showAll();
    if (known) for (const row of message.rows) if (!known.has(row.alert_id)) this.highlight(row.alert_id);
  }

  showAll() {
    const rows = [...new Map([...this.past, ...this.live]).values()].map(shownRow);
    this.table.replace(rows);
    this.count();
    if (this.chosen) this.open(this.chosen);
  }

  highlight(id) {
    const tr = this.table.rows.get(id)?.tr;
    if (!tr) return;
    tr.dataset.new = "true";
    setTimeout(() => delete tr.dataset.new, NEW_MS);
  }

  count() {
    const now = Date.now() * 1000;
    const rows = [...this.live.values()];
    const within = (seconds) => rows.filter((row) => row.opened_at > now - seconds * 1e6);
    const day = within(86_400);
    const open = rows.filter((row) => row.state === "OPEN").length;
    this.totals.open(String(open), open ? "down" : undefined);
    this.totals.hour(String(within(3600).length));
    this.totals.day(String(day.length));
    this.totals.critical(String(day.filter((row) => row.severity === "CRITICAL").length));
    const deepest = day.reduce((most, row) => (Math.abs(row.price_change_pct) > Math.abs(most) ? row.price_change_pct : most), 0);
    this.totals.deepest(day.length ? format.percent(deepest) : format.NONE, day.length ? format.direction(deepest) : undefined);
  }

  open(id) {
    this.chosen = id;
    const row = id && (this.live.get(id) ?? this.past.get(id));
    this.evidence.element.hidden = !row;
    this.evidence.element.parentElement.dataset.open = String(Boolean(row));
    if (row) this.evidence.show(row);
    this.mark();
  }

  choose(id) {
    history.replaceState(null, "", `${location.pathname}${location.search}${id ? `#${encodeURIComponent(id)}` : ""}`);
    this.open(id);
  }

  mark() {
    for (const [id, { tr }] of this.table?.rows ?? []) tr.setAttribute("aria-selected", String(id === this.chosen));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const input = this.form.elements.symbol;
    if (event.key === "Escape" && this.chosen && !/^(INPUT|SELECT)$/.test(event.target.tagName ?? "")) {
      const tr = this.table.rows.get(this.chosen)?.tr;
      this.choose("");
      tr?.focus();
    } else if (event.key === "f" && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName ?? "")) {
      event.preventDefault();
      input.focus();
    }
  }

  offer(symbols) {
    this.symbols = symbols;
    this.form.querySelector("datalist").replaceChildren(...symbols.map((symbol) => Object.assign(document.createElement("option"), { value: symbol })));
  }

  offerRules() {
    const list = this.form.elements.rule;
    const chosen = list.value;
    list.replaceChildren(list.options[0], ...[...this.rules].sort().map((name) => new Option(name, name)));
    list.value = chosen;
  }

  emptyText() {
    if (this.isAsked && this.state?.lake?.state === "filled") return "No alert so far. As soon as a price moves by a rule’s threshold, it shows here by itself.";
    return emptyText(this.state);
  }

  say(text) {
    this.said.textContent = text;
    this.said.hidden = !text;
  }

  unmount() {
    this.loading?.abort();
    clearTimeout(this.typing);
    clearInterval(this.timer);
    removeEventListener("hashchange", this.hashed);
    removeEventListener("keydown", this.pressed);
    for (const end of this.ends) end();
    this.table.unmount();
    this.evidence.unmount();
  }
}

function select(name, label, choices, all) {
  const options = choices.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
  return `<select name="${name}" aria-label="${label}" class="cp-input"><option value="">${all}</option>${options}</select>`;
}

// What the columns show of an episode. Open ones come first, then the newest.
export function shownRow(row) {
  const lastedS = (row.last_trigger_at - row.opened_at) / 1e6;
  return {
    ...row,
    opened_ms: row.opened_at / 1000,
    place: row.opened_at / 1000 + (row.state === "OPEN" ? 1e14 : 0),
    rank: RANKS[row.severity],
    lasted_s: lastedS,
    lasted: span(lastedS),
    from_to: format.pricesAlike(row.start_price, row.end_price).join(" → "),
  };
}
