// One episode: what happened in words, its price, and the trades that prove it.

import { ask, named } from "./answers.js";
import * as format from "./format.js";
import { MarkedPrice, decimalsOf } from "./marks.js";
import { Table, words } from "./table.js";

const COLUMNS = [
  { key: "role", label: "Trade", sortable: false },
  { key: "event_time", label: "Time", kind: "instant", sortable: false },
  { key: "price_text", label: "Price", sortable: false },
  { key: "size", label: "Size", kind: "amount", sortable: false },
  { key: "side", label: "Side", sortable: false },
  { key: "trade_id", label: "Trade id", kind: "count", sortable: false },
];
const ROLES = { start: "Start", trigger: "Trigger", last_trigger: "Last" };
const AGAIN_MS = 3000; // an open episode deepens with every trade; its evidence is read again so often at most

export class EvidencePanel {
  constructor(parent, { path, onClose }) {
    this.path = path;
    this.element = document.createElement("section");
    this.element.className = "cp-panel cp-evidence";
    this.element.setAttribute("aria-label", "Evidence");
    this.element.innerHTML =
      '<div class="cp-evidence-head"><h2></h2><span class="cp-tags"></span><button type="button" class="cp-button cp-icon" aria-label="Close" title="Close (Esc)">×</button></div>' +
      '<p class="cp-story"></p><dl class="cp-facts"></dl><div class="cp-drawn"></div><p class="cp-empty" hidden></p><div class="cp-trades"></div>' +
      '<p class="cp-links"><a class="cp-to-chart">Show in the product’s chart</a></p>';
    this.element.querySelector("button").onclick = onClose;
    this.note = this.element.querySelector(".cp-empty");
    parent.append(this.element);
    this.chart = new MarkedPrice(this.element.querySelector(".cp-drawn"), { height: 230, label: "Price during the episode" });
    this.table = new Table(this.element.querySelector(".cp-trades"), COLUMNS, {
      label: "Trades that prove it",
      keyOf: (row) => String(row.trade_id),
      sort: { key: "trade_id", down: false },
    });
    this.end = format.onZone(() => this.episode && this.tell());
  }

  // Another episode, or a newer state of the same one.
  show(episode) {
    const isSame = this.episode?.alert_id === episode.alert_id;
    if (isSame && JSON.stringify(this.episode) === JSON.stringify(episode)) return;
    this.episode = episode;
    this.tell();
    clearTimeout(this.timer);
    if (isSame) {
      this.timer = setTimeout(() => this.load(true), AGAIN_MS);
      return;
    }
    this.chart.clear();
    this.table.replace([]);
    this.load(false);
  }

  tell() {
    const one = this.episode;
    const find = (selector) => this.element.querySelector(selector);
    const percent = document.createElement("b");
    percent.dataset.direction = one.price_change_pct > 0 ? "up" : "down";
    percent.textContent = format.percent(one.price_change_pct);
    find("h2").replaceChildren(`${words(one.alert_type)} of ${one.symbol} `, percent);
    find(".cp-tags").replaceChildren(...[one.severity, one.state].map((value) => {
      const tag = Object.assign(document.createElement("span"), { className: "cp-tag", textContent: words(value) });
      tag.dataset.value = value;
      return tag;
    }));
    const [from, to] = format.pricesAlike(one.start_price, one.end_price);
    const verb = one.price_change_pct > 0 ? "rose" : "fell";
    find(".cp-story").textContent =
      `The price ${verb} from ${from} to ${to} within ${span((one.window_end - one.window_start) / 1e6)}. ` +
      `Rule ${one.rule}: ${Number(one.threshold_pct)}\u202f% within ${span(one.lookback_s)}, quiet after ${span(one.cool_down_s)}.`;
    const facts = [
      ["Opened", format.dateTime(one.opened_at / 1000)],
      ["Last trigger", format.dateTime(one.last_trigger_at / 1000)],
      ["Lasted", span((one.last_trigger_at - one.opened_at) / 1e6)],
      ["Seen after", one.detected_at ? span((one.detected_at - one.opened_at) / 1e6) : format.NONE],
      ["Id", one.alert_id],
    ];
    find(".cp-facts").replaceChildren(...facts.flatMap(([name, text]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: text }),
    ]));
    find(".cp-to-chart").href = `${window.path_prefix ?? ""}/product/${encodeURIComponent(one.symbol)}`;
  }

  async load(isSame) {
    const asked = this.episode;
    this.say(isSame ? "" : "Reading the trades …");
    try {
      const found = await ask(`${this.path}/evidence`, { method: "POST", body: asked });
      if (asked.alert_id !== this.episode?.alert_id) return;
      this.say(found.trades.length ? "" : "The trades of this episode are not in the lake any more.");
      this.draw(found, isSame);
    } catch (error) {
      if (asked.alert_id === this.episode?.alert_id) this.say(error.message);
    }
  }

  say(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  draw({ trades, roles, bars, grain_s: grainS }, isSame) {
    const rolesOf = new Map();
    const isCrash = this.episode.alert_type === "FLASH_CRASH";
    const wordOf = { ...ROLES, end: isCrash ? "Lowest" : "Highest" };
    for (const [name, id] of Object.entries(roles)) rolesOf.set(id, [...(rolesOf.get(id) ?? []), wordOf[name]]);
    const digits = trades.reduce((most, trade) => Math.max(most, trade.price.split(".")[1]?.length ?? 0), 0);
    const rows = trades.map((trade) => ({
      ...trade,
      role: rolesOf.get(trade.trade_id)?.join(", ") ?? "",
      price_text: format.price(Number(trade.price), digits),
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
    const named_ = named(bars.columns, bars.rows);
    const color = isCrash ? "down" : "up";
    const mark = (name, position, shade) => {
      const trade = trades.find((one) => one.trade_id === roles[name]);
      return trade && { at: trade.event_time, price: Number(trade.price), words: wordOf[name], color: shade, position };
    };
    const points = [mark("start", isCrash ? "top" : "bottom", "text"), mark("end", isCrash ? "bottom" : "top", color)];
    if (roles.trigger !== roles.end && roles.trigger !== roles.start) points.push(mark("trigger", "left", "warn"));
    this.chart.show({
      bars: named_,
      grainS,
      points: points.filter(Boolean),
      areas: [{ name: "", from: this.episode.opened_at / 1000, until: Math.max(this.episode.last_trigger_at, this.episode.opened_at + 1e6) / 1000, color }],
      decimals: decimalsOf(named_),
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

// Seconds in words: "0.4 s", "2 min".
export function span(seconds) {
  return format.age(Math.max(seconds, 0));
}
