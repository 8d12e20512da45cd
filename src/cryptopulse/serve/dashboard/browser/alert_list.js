// The list of live and past episodes under the same filters, and the chosen episode beside it with its evidence.

import { TYPES, directionOf, measured } from "./alert_words.js";
import { currentHash, h, onHash, onKey, replaceAddress, setNote } from "./dom.js";
import { RANKS } from "./episode_filter.js";
import { Episodes } from "./episodes.js";
import { EvidencePanel } from "./evidence.js";
import * as format from "./format.js";
import { watchState } from "./live.js";
import { emptyText, figures } from "./panels.js";
import { Table } from "./table.js";

const COLUMNS = [
  { key: "opened_ms", label: "Opened", kind: "time", sortKey: "place" },
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "alert_type", label: "Type", kind: "badge" },
  { key: "measured", label: "Change", kind: "measured", sortKey: "price_change_pct" },
  { key: "severity", label: "Severity", kind: "badge", sortKey: "rank" },
  { key: "state", label: "State", kind: "badge" },
  { key: "from_to", label: "From → to", hide: "tablet", sortable: false },
  { key: "lasted", label: "Lasted", hide: "phone", sortKey: "lasted_s" },
  { key: "rule", label: "Rule", hide: "tablet" },
];
export const SPANS_S = { "1h": 3600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000 };
const FILTERS = ["product", "alert_type", "severity", "rule", "state", "span"];
const READING = "Reading …";
const NEW_MS = 4000; // how long a new episode is highlighted

export class AlertList {
  constructor(parent, { path, rules }) {
    this.rules = new Set(rules.map((rule) => rule.name));
    this.chosen = currentHash();
    this.totals = figures(parent, "Alerts", {
      open: ["Open"],
      hour: ["Last hour", "Episodes that opened in the hour before the newest trade"],
      day: ["Last 24 h", "Episodes that opened in the 24 hours before the newest trade"],
      critical: ["Critical 24 h", "Four thresholds and more"],
      largest: ["Largest 24 h", "The largest change of a price in the last 24 hours"],
    });
    this.form = h("form", { className: "cp-tools cp-filters", "aria-label": "Filters" });
    this.form.innerHTML =
      '<input name="product" type="search" placeholder="Product" aria-label="Product" title="A part of the id (f)" autocomplete="off" spellcheck="false">' +
      select("alert_type", "Type", Object.entries(TYPES), "All types") +
      select("severity", "Severity", [["CRITICAL", "Critical"], ["HIGH", "High"], ["WARNING", "Warning"]], "All severities") +
      select("rule", "Rule", [], "All rules") +
      select("state", "State", [["OPEN", "Open"], ["CLOSED", "Closed"]], "Open and closed") +
      select("span", "Time", [["1h", "Last hour"], ["24h", "Last 24 hours"], ["7d", "Last 7 days"], ["30d", "Last 30 days"]], "Any time") +
      '<button class="cp-button" type="reset">Clear</button><output id="cp-shown">' + READING + "</output>";
    this.form.onsubmit = (event) => event.preventDefault();
    this.form.onreset = () => setTimeout(() => this.filter());
    this.form.oninput = () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.filter(), 150);
    };
    const list = h("div");
    const columns = h("div", { className: "cp-columns cp-wide" }, list);
    parent.append(this.form, columns);
    this.table = new Table(list, COLUMNS, {
      label: "Episodes",
      keyOf: (row) => row.alert_id,
      href: (row) => `#${encodeURIComponent(row.alert_id)}`,
      sort: { key: "opened_ms", down: true },
      empty: () => this.emptyText(),
      onArranged: () => this.mark(),
    });
    this.table.wrap.setAttribute("aria-live", "polite");
    this.more = h("button", { className: "cp-button cp-more", type: "button", textContent: "Older episodes", hidden: true, onclick: () => this.episodes.older() });
    this.note = h("p", { className: "cp-empty", hidden: true });
    list.append(this.more, this.note);
    this.evidence = new EvidencePanel(columns, { path, onClose: () => this.choose("") });
    this.table.filteredBy(this.form.elements.product, () => this.filter());
    // Filters are in the address, so that a link shows the same list.
    const given = new URLSearchParams(location.search);
    if (given.get("rule")) this.rules.add(given.get("rule"));
    this.offerRules();
    for (const name of FILTERS) if (given.get(name)) this.form.elements[name].value = given.get(name);
    this.episodes = new Episodes({ path, onChange: (fresh) => this.show(fresh) });
    this.ends = [
      onHash((id) => {
        this.open(id);
        this.evidence.element.scrollIntoView({ block: "nearest" }); // on a narrow screen it is above the list
      }),
      onKey((event) => {
        if (event.key !== "Escape" || !this.chosen) return;
        const tr = this.table.rows.get(this.chosen)?.tr;
        this.choose("");
        tr?.focus();
      }),
      watchState((now) => {
        const isFirst = !this.state?.nowMs && now.nowMs;
        this.state = now;
        this.showTotals();
        if (isFirst) this.load(); // only now is it known when "the last hour" is
        if (!this.table.rows.size) this.table.arrange(true);
      }),
    ];
  }

  filters() {
    return Object.fromEntries(FILTERS.map((name) => [name, this.form.elements[name].value.trim()]));
  }

  filter() {
    replaceAddress({ query: new URLSearchParams(Object.entries(this.filters()).filter(([, value]) => value)) });
    this.load();
  }

  load() {
    const { span, ...filters } = this.filters();
    const sinceMs = SPANS_S[span] ? Math.round((this.state?.nowMs ?? Date.now()) - SPANS_S[span] * 1000) : null;
    return this.episodes.read({ ...filters, sinceMs });
  }

  show(fresh) {
    const { episodes } = this;
    for (const { rule } of episodes.live.values()) this.rules.add(rule);
    this.offerRules();
    const rows = episodes.rows();
    this.table.replace(rows.map(shownRow));
    const { total, isRead } = episodes;
    const all = total === 1 ? "1 episode" : `${format.count(total)} episodes`;
    this.form.querySelector("output").textContent = !total ? (isRead ? "" : READING) : rows.length < total ? `${format.count(rows.length)} of ${all}` : all;
    this.more.hidden = episodes.isLast || total === null;
    this.more.disabled = episodes.isReading;
    setNote(this.note, isRead ? episodes.error : rows.length ? "These are open. The others are being read …" : "");
    this.table.wrap.setAttribute("aria-busy", String(!isRead));
    this.open(this.chosen);
    for (const id of fresh) {
      const tr = this.table.rows.get(id)?.tr;
      if (!tr) continue;
      tr.dataset.new = "true";
      setTimeout(() => delete tr.dataset.new, NEW_MS);
    }
  }

  // The server's counts, relative to the time of the newest trade.
  showTotals() {
    const lake = this.state?.lake;
    if (!format.known(lake?.alerts_24h)) return;
    this.totals.open(format.count(lake.open_alerts), lake.open_alerts ? "down" : undefined);
    this.totals.hour(format.count(lake.alerts_1h));
    this.totals.day(format.count(lake.alerts_24h));
    this.totals.critical(format.count(lake.critical_24h));
    const largest = lake.largest_24h;
    this.totals.largest(format.percent(largest), format.known(largest) ? format.direction(largest) : undefined);
  }

  open(id) {
    this.chosen = id;
    const row = id && this.episodes.get(id);
    this.evidence.element.hidden = !row;
    this.evidence.element.parentElement.dataset.open = String(Boolean(row));
    if (row) this.evidence.show(row);
    this.mark();
  }

  choose(id) {
    replaceAddress({ hash: id });
    this.open(id);
  }

  mark() {
    for (const [id, { tr, row }] of this.table?.rows ?? []) {
      tr.setAttribute("aria-selected", String(id === this.chosen));
      tr.dataset.state = row.state;
    }
  }

  offerRules() {
    const list = this.form.elements.rule;
    if (list.options.length === this.rules.size + 1) return;
    const chosen = list.value;
    list.replaceChildren(list.options[0], ...[...this.rules].sort().map((name) => new Option(name, name)));
    list.value = chosen;
  }

  emptyText() {
    if (!this.episodes?.isRead || this.state?.lake?.state !== "filled") return emptyText(this.state);
    if (Object.values(this.filters()).some(Boolean)) return "Nothing matches.";
    return "No alert so far. As soon as a rule’s threshold is reached, it shows here by itself.";
  }

  unmount() {
    clearTimeout(this.typing);
    for (const end of this.ends) end();
    for (const part of [this.episodes, this.table, this.evidence]) part.unmount();
  }
}

function select(name, label, choices, all) {
  const options = choices.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
  return `<select name="${name}" aria-label="${label}" class="cp-input"><option value="">${all}</option>${options}</select>`;
}

// The values of an episode's columns. Open episodes come first, then the newest.
export function shownRow(row) {
  const lastedS = (row.last_trigger_at - row.opened_at) / 1e6;
  return {
    ...row,
    opened_ms: row.opened_at / 1000,
    place: row.opened_at / 1000 + (row.state === "OPEN" ? 1e14 : 0),
    rank: RANKS[row.severity],
    lasted_s: lastedS,
    lasted: format.age(Math.max(lastedS, 0)),
    measured: measured(row),
    direction: directionOf(row),
    from_to: format.pricesAlike(row.start_price, row.end_price).join(" → "),
  };
}
