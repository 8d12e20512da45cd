// One episode: a text about what happened, its price chart, and the trades that prove it.

import { colorOf, directionOf, isOfPrice, measured, story, thresholdText } from "./alert_words.js";
import { fetchJson, toObjects } from "./api.js";
import { h, setNote } from "./dom.js";
import * as format from "./format.js";
import { chartLink } from "./links.js";
import { detailsPanel, words } from "./panels.js";
import { PriceChart, decimalsOf } from "./price_chart.js";
import { Table } from "./table.js";

const COLUMNS = [
  { key: "role", label: "Trade", sortable: false },
  { key: "time_text", label: "Time", sortable: false },
  { key: "price_text", label: "Price", sortable: false },
  { key: "size", label: "Size", kind: "amount", sortable: false },
  { key: "side", label: "Side", sortable: false },
  { key: "trade_id", label: "Trade id", kind: "count", sortable: false },
];
const ROLES = { start: "Start", trigger: "Trigger", last_trigger: "Last" };
const LIVE_S = 3600; // an episode detected later was not judged live
const REFRESH_MS = 3000; // least time between two reads of the evidence; an open episode may change with every trade

export class EvidencePanel {
  constructor(parent, { path, onClose }) {
    this.path = path;
    const html =
      '<dl class="cp-facts"></dl><div class="cp-drawn"></div><p class="cp-empty" hidden></p><div class="cp-trades"></div>' +
      '<p class="cp-links"><a class="cp-to-chart">Show in the product’s chart</a></p>';
    Object.assign(this, detailsPanel(parent, "Evidence", "cp-evidence", html, onClose));
    this.chart = new PriceChart(this.find(".cp-drawn"), { height: 230, label: "Price during the episode" });
    this.table = new Table(this.find(".cp-trades"), COLUMNS, {
      label: "Trades that prove it",
      keyOf: (row) => String(row.trade_id),
      sort: { key: "trade_id", down: false },
    });
    this.end = format.onZone(() => {
      if (this.episode) this.describe();
      if (this.evidence) this.draw(true);
    });
  }

  // Shows another episode, or a newer state of the same one.
  show(episode) {
    const isSame = this.episode?.alert_id === episode.alert_id;
    if (isSame && JSON.stringify(this.episode) === JSON.stringify(episode)) return;
    this.episode = episode;
    this.describe();
    clearTimeout(this.timer);
    if (isSame) {
      this.timer = setTimeout(() => this.load(true), REFRESH_MS);
      return;
    }
    this.evidence = null;
    this.chart.clear();
    this.table.replace([]);
    this.load(false);
  }

  describe() {
    const one = this.episode;
    const percent = h("b", { "data-direction": directionOf(one), textContent: measured(one) });
    this.setHead([`${words(one.alert_type)} of ${one.symbol} `, percent], [one.severity, one.state]);
    this.find(".cp-story").textContent = `${story(one)} Rule ${one.rule}: ${thresholdText(one)}, quiet after ${format.age(one.cool_down_s)}.`;
    const detectedS = one.detected_at ? (one.detected_at - one.opened_at) / 1e6 : null;
    const facts = [
      ["Opened", format.dateTime(one.opened_at / 1000)],
      ["Last trigger", format.dateTime(one.last_trigger_at / 1000)],
      ["Lasted", format.age((one.last_trigger_at - one.opened_at) / 1e6)],
      detectedS > LIVE_S ? ["Detected", `${format.dateTime(one.detected_at / 1000)}, not live`] : ["Detected after", format.age(detectedS)],
      ["Id", one.alert_id],
    ];
    this.find(".cp-facts").replaceChildren(...facts.flatMap(([name, text]) => [h("dt", { textContent: name }), h("dd", { textContent: text })]));
    const first = Math.min(one.window_start, one.opened_at);
    this.find(".cp-to-chart").href = chartLink(one.symbol, { atMs: (first + one.last_trigger_at) / 2000, seconds: (one.last_trigger_at - first) / 1e6, id: one.alert_id });
  }

  async load(isSame) {
    const { episode } = this;
    const isShown = () => episode.alert_id === this.episode?.alert_id;
    const note = this.find(".cp-empty");
    setNote(note, isSame ? "" : "Reading the trades …");
    try {
      const evidence = await fetchJson(`${this.path}/evidence`, { method: "POST", body: episode });
      if (!isShown()) return;
      setNote(note, evidence.trades.length ? "" : "The trades of this episode are not in the lake any more.");
      this.evidence = evidence;
      this.draw(isSame);
    } catch (error) {
      if (isShown()) setNote(note, error.message);
    }
  }

  draw(isSame) {
    const { trades, roles, bars, grain_s: grainS } = this.evidence;
    const day = trades.length ? format.date(trades[0].event_time) : "";
    this.find("th[data-key=time_text]").textContent = trades.length ? `Time, ${day}` : "Time";
    const color = colorOf(this.episode);
    const isCrash = color === "down";
    const wordOf = { ...ROLES, end: !isOfPrice(this.episode) ? "Peak" : isCrash ? "Lowest" : "Highest" };
    const rolesOf = new Map();
    for (const [name, id] of Object.entries(roles)) rolesOf.set(id, [...(rolesOf.get(id) ?? []), wordOf[name]]);
    const prices = format.pricesAlike(...trades.map((trade) => trade.price));
    const rows = trades.map((trade, place) => ({
      ...trade,
      role: rolesOf.get(trade.trade_id)?.join(", ") ?? "",
      time_text: format.date(trade.event_time) === day ? format.clockMs(trade.event_time) : format.instant(trade.event_time),
      price_text: prices[place],
      size: Number(trade.trade_size),
      side: words(trade.side),
    }));
    this.table.replace(rows);
    let before = null;
    for (const tr of this.table.body.rows) {
      const id = Number(tr.dataset.key);
      tr.dataset.decisive = String(rolesOf.has(id));
      tr.dataset.gap = String(before !== null && id !== before + 1); // trades between are left out
      before = id;
    }
    const point = (name, position, shade) => {
      const trade = trades.find((one) => one.trade_id === roles[name]);
      return trade && { at: trade.event_time, price: Number(trade.price), words: wordOf[name], color: shade, position };
    };
    const points = [point("start", isCrash ? "top" : "bottom", "text"), point("end", isCrash ? "bottom" : "top", color)];
    if (roles.trigger !== roles.end && roles.trigger !== roles.start) points.push(point("trigger", "left", "warn"));
    const shown = toObjects(bars);
    this.chart.show({
      bars: shown,
      grainS,
      points: points.filter(Boolean),
      areas: [{ name: "", from: this.episode.opened_at / 1000, until: Math.max(this.episode.last_trigger_at, this.episode.opened_at + 1e6) / 1000, color }],
      decimals: decimalsOf(shown),
      isSame,
    });
  }

  unmount() {
    clearTimeout(this.timer);
    this.end();
    this.chart.unmount();
    this.table.unmount();
  }
}
