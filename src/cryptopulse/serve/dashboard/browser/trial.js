// The backtest of a rule on the stored trades: a form, the progress, and the alerts that it would have raised, as rows and
// on the price chart.

import { TYPES, colorOf, measured } from "./alert_words.js";
import { SPANS_S, shownRow } from "./alert_list.js";
import { fetchJson, toObjects } from "./api.js";
import { h, onHash, setNote } from "./dom.js";
import * as format from "./format.js";
import { describe } from "./live.js";
import { PriceChart, decimalsOf } from "./price_chart.js";
import { Table } from "./table.js";

const POLL_EVERY_MS = 400;
const COLUMNS = [
  { key: "opened_ms", label: "Opened", kind: "time" },
  { key: "symbol", label: "Product", kind: "symbol" },
  { key: "alert_type", label: "Type", kind: "badge" },
  { key: "measured", label: "Change", kind: "measured", sortKey: "price_change_pct" },
  { key: "severity", label: "Severity", kind: "badge", sortKey: "rank" },
  { key: "from_to", label: "From → to", hide: "tablet", sortable: false },
  { key: "lasted", label: "Lasted", hide: "phone", sortKey: "lasted_s" },
];
const FIELDS = [
  ["threshold_pct", "Threshold", "%", "What opens an episode: a fall or rise; volume as a share of the usual; net volume as a share of the volume; volatility; distance from other venues; usual gaps; the value of a custom rule", "decimal"],
  ["lookback_s", "Look-back", "s", "How far a trade looks back", "numeric"],
  ["cool_down_s", "Cool-down", "s", "Quiet time that closes an episode", "numeric"],
  ["min_trades", "Least trades", "", "Trades that the look-back must have", "numeric"],
  ["min_volume", "Least volume", "", "Base-currency volume that the look-back must have", "decimal"],
  ["baseline_windows", "Usual windows", "", "For volume surges and silences: windows before the look-back, whose median is the usual", "numeric"],
  ["products", "Products", "", "Ids or patterns, with commas between: BTC-USD, *-EUR", "text"],
  ["name", "Name", "", "Name of the rule", "text"],
  ["sql", "SQL", "", "For custom rules: a SELECT over bars with the columns symbol and value", "text"],
];

export class TrialView {
  constructor(parent, { path, rules }) {
    this.path = path;
    this.form = h("form", { className: "cp-panel cp-form", noValidate: true, "aria-label": "Rule" });
    const inputs = FIELDS.map(
      ([name, label, unit, hint, mode]) =>
        `<label title="${hint}"><span>${label}</span><span class="cp-unit" data-unit="${unit}"><input class="cp-input" name="${name}" inputmode="${mode}" autocomplete="off" spellcheck="false" aria-describedby="cp-fault-${name}"></span></label><p class="cp-fault" id="cp-fault-${name}" hidden></p>`,
    ).join("");
    const types = Object.entries(TYPES)
      .map(([type, name]) => `<label class="cp-check"><input type="checkbox" name="${type}"> ${name}</label>`)
      .join("");
    this.form.innerHTML =
      `<h2 class="cp-panel-head">Rule</h2>${inputs}` +
      `<fieldset><legend>Types</legend>${types}</fieldset><p class="cp-fault" id="cp-fault-types" hidden></p>` +
      '<label><span>Time</span><select class="cp-input" name="span"><option value="">All that is stored</option><option value="1h">Last hour</option><option value="24h">Last 24 hours</option><option value="7d">Last 7 days</option><option value="own">From … to …</option></select></label>' +
      '<div class="cp-own" hidden><label><span>From <small></small></span><input class="cp-input" type="datetime-local" step="1" name="start"></label><p class="cp-fault" id="cp-fault-start" hidden></p>' +
      '<label><span>To <small></small></span><input class="cp-input" type="datetime-local" step="1" name="end"></label><p class="cp-fault" id="cp-fault-end" hidden></p></div>' +
      '<div class="cp-doing"><button class="cp-button cp-primary" type="submit">Try it</button><button class="cp-button" type="button" name="stop" hidden>Stop</button></div>' +
      '<p class="cp-fault" id="cp-fault-" role="alert" hidden></p>';
    this.form.onsubmit = (event) => {
      event.preventDefault();
      this.begin();
    };
    this.form.elements.span.onchange = () => (this.form.querySelector(".cp-own").hidden = this.form.elements.span.value !== "own");
    this.form.elements.stop.onclick = () => this.stop();
    this.found = h("section", { className: "cp-panel cp-found", "aria-label": "What it would have raised" });
    this.found.innerHTML =
      '<h2 class="cp-panel-head"><span>What it would have raised</span><span class="cp-panel-tools"></span></h2><div class="cp-progress" hidden><progress max="1"></progress><span></span></div>' +
      '<p class="cp-empty" role="status">Nothing is stored by a trial, and nobody is notified. It judges the stored trades as the pipeline would have done, with this rule.</p><div class="cp-drawn" hidden></div><div class="cp-trial-rows"></div>';
    parent.append(h("div", { className: "cp-try" }, this.form, this.found));
    this.note = this.found.querySelector(".cp-empty");
    this.progress = this.found.querySelector(".cp-progress");
    this.drawn = this.found.querySelector(".cp-drawn");
    this.tools = this.found.querySelector(".cp-panel-tools");
    this.chart = new PriceChart(this.drawn, { height: 260, label: "Price with the episodes that the rule would have raised", onPick: (name) => this.pick(name) });
    this.table = new Table(this.found.querySelector(".cp-trial-rows"), COLUMNS, {
      label: "Episodes of the trial",
      keyOf: (row) => row.alert_id,
      href: (row) => `#${encodeURIComponent(row.alert_id)}`,
      sort: { key: "opened_ms", down: true },
    });
    const rule = rules[0] ?? {};
    for (const [name] of FIELDS) {
      const value = rule[name] ?? "";
      this.form.elements[name].value = Array.isArray(value) ? value.join(", ") : /^\d+\.\d+$/.test(value) ? String(Number(value)) : value;
    }
    for (const type of Object.keys(TYPES)) this.form.elements[type].checked = (rule.types ?? ["FLASH_CRASH", "PRICE_SURGE"]).includes(type);
    const showZone = () => {
      for (const small of this.form.querySelectorAll(".cp-own small")) small.textContent = format.zoneName();
    };
    showZone();
    this.ends = [format.onZone(showZone), onHash((id) => this.pick(id))];
  }

  // The request for the form's values.
  request() {
    const values = this.form.elements;
    const request = Object.fromEntries(FIELDS.map(([name]) => [name, values[name].value.trim()]));
    request.products ||= "*";
    request.types = Object.keys(TYPES).filter((type) => values[type].checked);
    const seconds = SPANS_S[values.span.value];
    if (seconds) request.start = (describe().nowMs ?? Date.now()) - seconds * 1000;
    if (values.span.value === "own") {
      for (const name of ["start", "end"]) if (values[name].value) request[name] = Date.parse(`${values[name].value}${format.zone() === "utc" ? "Z" : ""}`);
    }
    return request;
  }

  async begin(request = this.request()) {
    this.showFaults({});
    this.table.replace([]);
    this.drawn.hidden = true;
    this.tools.replaceChildren();
    this.range = request;
    this.isStopped = false;
    this.setBusy(true, "Starting …");
    try {
      this.trial = await fetchJson(`${this.path}/trials`, { method: "POST", body: request });
      this.poll();
    } catch (error) {
      this.setBusy(false);
      if (error.faults) this.showFaults(error.faults);
      setNote(this.note, error.faults ? "Some fields need a change; the reasons stand beside them." : error.message);
    }
  }

  async poll() {
    const { id } = this.trial;
    const again = (...values) => {
      this.setBusy(true, ...values);
      this.timer = setTimeout(() => this.poll(), POLL_EVERY_MS);
    };
    try {
      const now = await fetchJson(`${this.path}/trials/${id}`);
      if (this.trial?.id !== id) return;
      if (now.state === "waiting" || now.state === "running") {
        const share = now.steps ? now.done / now.steps : null;
        again(now.state === "waiting" ? "Waiting for another trial …" : share === null ? "Reading the trades …" : `${Math.floor(share * 100)}\u202f% judged`, share);
        return;
      }
      this.setBusy(false);
      if (now.state === "done") this.show(now);
      else setNote(this.note, now.detail);
    } catch (error) {
      if (this.trial?.id !== id) return;
      if (error.status === 404 && !this.isStopped) {
        this.begin(this.range); // a server that was restarted does not know the backtest
      } else if (!error.status || error.status >= 500) {
        again("The server does not answer …");
      } else {
        this.setBusy(false);
        setNote(this.note, error.message);
      }
    }
  }

  stop() {
    this.isStopped = true;
    if (this.trial) fetchJson(`${this.path}/trials/${this.trial.id}`, { method: "DELETE" }).catch(() => {});
    this.setBusy(true, "Stopping …");
  }

  setBusy(isBusy, text = "", share = null) {
    this.progress.hidden = !isBusy;
    this.form.elements.stop.hidden = !isBusy;
    this.form.querySelector("[type=submit]").disabled = isBusy;
    this.progress.querySelector("span").textContent = text;
    const bar = this.progress.querySelector("progress");
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
    if (isBusy) setNote(this.note, "");
  }

  showFaults(faults) {
    for (const note of this.form.querySelectorAll(".cp-fault")) {
      const name = note.id.slice("cp-fault-".length);
      setNote(note, faults[name]);
      this.form.elements[name]?.setAttribute?.("aria-invalid", String(Boolean(faults[name])));
    }
    const first = Object.keys(faults).find((name) => this.form.elements[name]?.focus);
    if (first) this.form.elements[first].focus();
  }

  show(result) {
    this.episodes = result.episodes.map(shownRow);
    this.table.replace(this.episodes);
    const bySymbol = new Map();
    for (const row of this.episodes) bySymbol.set(row.symbol, (bySymbol.get(row.symbol) ?? 0) + 1);
    const products = [...bySymbol.keys()].sort((a, b) => bySymbol.get(b) - bySymbol.get(a) || (a < b ? -1 : 1));
    const more = result.found > this.episodes.length ? `, the newest ${this.episodes.length} of them below` : "";
    this.found.dataset.found = result.found;
    const summary = `${format.count(result.found)} ${result.found === 1 ? "episode" : "episodes"}${more}, judged in ${format.age(result.took_s)}`;
    this.tools.replaceChildren(h("span", { className: "cp-count", textContent: summary }));
    if (!result.found) {
      setNote(this.note, "This rule would have raised nothing. A lower threshold or a longer look-back finds more.");
      return;
    }
    const options = products.map((symbol) => new Option(`${symbol} (${bySymbol.get(symbol)})`, symbol));
    this.list = h("select", { className: "cp-input", "aria-label": "Product on the chart" }, ...options);
    this.list.onchange = () => this.plot(this.list.value);
    this.tools.append(this.list);
    this.plot(products[0]);
  }

  async plot(symbol) {
    if (this.shown !== symbol || this.shownOf !== this.trial.id) {
      const query = new URLSearchParams();
      for (const name of ["start", "end"]) if (this.range[name]) query.set(name, this.range[name]);
      try {
        const { bars, grain_s: grainS } = await fetchJson(`${this.path}/prices/${encodeURIComponent(symbol)}?${query}`);
        this.bars = toObjects(bars);
        this.grainS = grainS;
      } catch (error) {
        setNote(this.note, `The prices could not be read: ${error.message}`);
        return;
      }
      this.shown = symbol;
      this.shownOf = this.trial.id;
      this.drawn.hidden = false;
      this.chart.chart.resize();
    }
    this.list.value = symbol;
    const own = this.episodes.filter((row) => row.symbol === symbol);
    this.chart.show({
      bars: this.bars,
      grainS: this.grainS,
      areas: own.map((row) => ({ name: row.alert_id, from: row.window_start / 1000, until: Math.max(row.last_trigger_at, row.opened_at + 1e6) / 1000, color: colorOf(row) })),
      points: own.map((row) => ({
        at: row.window_end / 1000,
        price: Number(row.end_price),
        words: own.length <= 12 || row.alert_id === this.picked ? measured(row, 1) : "",
        color: colorOf(row),
        position: colorOf(row) === "down" ? "bottom" : "top",
      })),
      decimals: decimalsOf(this.bars),
      isSame: false,
    });
  }

  pick(id) {
    const row = this.episodes?.find((one) => one.alert_id === id);
    if (!row) return;
    this.picked = id;
    for (const [key, { tr }] of this.table.rows) tr.setAttribute("aria-selected", String(key === id));
    this.table.rows.get(id).tr.scrollIntoView({ block: "nearest" });
    this.plot(row.symbol);
  }

  unmount() {
    clearTimeout(this.timer);
    if (this.trial && !this.progress.hidden) this.stop();
    this.trial = null;
    for (const end of this.ends) end();
    this.chart.unmount();
    this.table.unmount();
  }
}
