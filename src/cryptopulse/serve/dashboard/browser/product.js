// The page of one product, live and back to its first trade: price, changes, chart, figures, alerts.

import { directionOf, measured } from "./alert_words.js";
import { fetchJson } from "./api.js";
import { CandleChart, DAY_S } from "./chart.js";
import { currentHash, h, onHash, onKey, readStorage, replaceAddress, setNote, setText, writeStorage } from "./dom.js";
import { Episodes } from "./episodes.js";
import * as format from "./format.js";
import { isoOf, msOf } from "./links.js";
import { subscribe, watchState } from "./live.js";
import { emptyText, figures, tag, words } from "./panels.js";

const GRAIN_KEY = "cryptopulse.grain";
const FEW = 15; // with fewer candles than this a finer grain shows more
const FINER = "5s";
const TITLE = document.title;
const ADDRESS_EVERY_MS = 250;
const FOLLOW_MS = 2000;
// Measures of bars that end by activity: their names, and the size that makes some 500 of the last 24 hours.
const ACTIVITY = {
  trades: ["Trades", (day) => Math.ceil(day.trades_24h / 500)],
  volume: ["Volume", (day) => day.volume_24h / 500],
  notional: ["Value", (day) => day.notional_24h / 500],
  trade_imbalance: ["Imbalance of trades", (day) => Math.ceil(Math.sqrt(day.trades_24h / 500))],
  volume_imbalance: ["Imbalance of volume", (day) => day.volume_24h / Math.sqrt(500 * day.trades_24h)],
  range: ["Price range", (day) => (day.high_24h - day.low_24h) / 20],
};
const isActivity = (grain) => /^\w+:[\d.e+-]+$/.test(grain) && grain.split(":")[0] in ACTIVITY;

export function mount(element, { symbol, grains, path }) {
  const seconds = Object.fromEntries(grains);
  const [base, rest] = format.symbolParts(symbol);
  element.classList.add("cp-product");
  element.innerHTML =
    '<div class="cp-product-head"><h1></h1><span class="cp-price">–</span><dl class="cp-changes"></dl></div>' +
    '<div class="cp-totals"></div>' +
    '<div class="cp-columns"><section class="cp-panel" aria-label="Chart">' +
    '<div class="cp-chart-bar"><div class="cp-group" role="group" aria-label="Grain"></div>' +
    '<form class="cp-jump" aria-label="Bars by activity"><select class="cp-input" name="measure" aria-label="Bars end by" title="Bars that end by what was traded"><option value="">By activity …</option></select>' +
    '<input class="cp-input" name="size" type="number" min="0" step="any" required hidden aria-label="Size of a bar"></form>' +
    '<form class="cp-jump" aria-label="Go to a time"><input class="cp-input" type="date" required><input class="cp-input" type="time" step="1"><button class="cp-button" title="Show this date, or time (d)">Go</button></form>' +
    '<div class="cp-group" role="group" aria-label="Go to an alert"><button class="cp-button" data-way="-1" title="The alert before (,)">‹ Alert</button>' +
    '<button class="cp-button" data-way="1" title="The next alert (.)">Alert ›</button></div>' +
    '<button class="cp-button" id="cp-latest" hidden title="Back to the newest candles (0)">Latest ⇥</button>' +
    '<div class="cp-gap"></div><div class="cp-group" role="group" aria-label="Lines">' +
    '<button class="cp-button" data-line="average_1h" aria-pressed="true" title="Mean price of the trades of the last hour">Average 1 h</button>' +
    '<button class="cp-button" data-line="vwap" aria-pressed="true" title="Volume-weighted average price of each candle">VWAP</button></div></div>' +
    '<div class="cp-legend" aria-live="off"></div><p class="cp-said" role="status" hidden></p>' +
    '<div class="cp-chart" role="img"><div class="cp-drawing"></div><div class="cp-note"></div></div></section>' +
    '<section class="cp-panel" aria-label="Alerts"><h2 class="cp-panel-head"><span>Alerts</span><span class="cp-count"></span></h2><ul class="cp-alerts"></ul></section></div>';
  const find = (selector) => element.querySelector(selector);
  find("h1").append(base, h("span", { textContent: rest }));
  const changes = ["1m", "5m", "1h", "24h"].map((span) => {
    const value = h("dd");
    find(".cp-changes").append(h("div", {}, h("dt", { textContent: span.replace(/(\d+)/, "$1\u202f") }), value));
    return [`change_${span}`, value];
  });
  const totals = figures(find(".cp-totals"), "Figures", {
    high: ["High 24 h"],
    low: ["Low 24 h"],
    volume: [`Volume 24 h, ${base}`],
    notional: [`Volume 24 h, ${rest.slice(1).split("@")[0] || "quote"}`],
    trades: ["Trades 24 h"],
    average: ["Average 1 h", "Mean price of the trades of the last hour, each counting once"],
    buyers: ["Buyers 1 h", "Share of the last hour's volume that takers bought"],
  });
  const [note, status, latest, box] = [".cp-note", ".cp-said", "#cp-latest", ".cp-chart"].map(find);
  const jump = find('[aria-label="Go to a time"]');
  const { measure, size } = find('[aria-label="Bars by activity"]').elements;
  measure.append(...Object.entries(ACTIVITY).map(([value, [textContent]]) => h("option", { value, textContent })));
  const [date, time] = jump.querySelectorAll("input");
  let state = null;
  let known = null; // whether the product has traded in the last 25 hours of the lake
  let [dayFigures, isFirst, grain, endCandles] = [null, true, null, null];
  let isGrainChosen = false; // by the viewer or the address
  let chosen = currentHash() || null;
  let wanted = null; // the time (ms) in the address, until it is shown

  // Reads a page of candles; `edge`: {before} or {start} in seconds, or neither.
  const load = (edge) => {
    const query = new URLSearchParams(Object.entries(edge).map(([name, at]) => [name, at * 1000]));
    return fetchJson(`${path}/candles/${encodeURIComponent(symbol)}/${grain}?${query}`);
  };
  const chart = new CandleChart(find(".cp-drawing"), {
    load,
    onHover: showLegend,
    onMove: () => {
      latest.hidden = chart.isFollowing;
      clearTimeout(addressing);
      addressing = setTimeout(writeAddress, ADDRESS_EVERY_MS);
    },
    onRead: (text) => {
      setNote(status, text);
      showNote();
    },
  });
  let addressing = null;
  const spanFirst = chart.span;

  // Shows the values of a candle.
  function showLegend(row, decimals) {
    const direction = row?.close >= row?.open ? "up" : "down";
    const parts = row && [
      ["", `${format.date(row.time * 1000)} ${format.clock(row.time * 1000, !(seconds[grain] >= 60))}`],
      ...["open", "high", "low", "close"].map((name) => [name[0].toUpperCase(), format.price(row[name], decimals), direction]),
      ["", format.percent(100 * (row.close / row.open - 1)), direction],
      ["Vol", format.amount(row.volume)],
      ["Bought", format.share((100 * row.buy_volume) / row.volume)],
      ["VWAP", format.price(row.vwap, decimals)],
      ["Avg 1 h", format.price(row.average_1h, decimals)],
      ["Trades", format.count(row.trade_count)],
    ];
    const spans = (parts ?? []).map(([name, text, way]) => h("span", {}, name ? `${name} ` : "", h("b", { textContent: text, "data-direction": way })));
    find(".cp-legend").replaceChildren(...spans);
  }

  // Writes grain, zoom and visible time into the address, so that a link shows the same.
  function writeAddress() {
    const middle = chart.middle();
    const query = new URLSearchParams();
    if (middle !== null) query.set("at", isoOf(middle * 1000));
    if (isGrainChosen || middle !== null) query.set("grain", grain);
    if (chart.span !== spanFirst) query.set("candles", chart.span);
    replaceAddress({ query });
  }

  // Shows a time (ms), or the reason why it can't.
  async function goTo(ms, what) {
    const before = grain;
    wanted = null;
    setNote(status, "");
    const found = await chart.goTo(ms / 1000);
    if (before !== grain) return;
    if (found === null) {
      if (status.hidden) setNote(status, `No trade of ${symbol} is stored, so ${what} can’t be shown.`);
    } else if (Math.abs(found - ms / 1000) >= seconds[grain]) {
      setNote(status, `No trade is stored at ${what}; the candles next to it are shown.`);
    }
  }

  const showNote = () => {
    const isThere = chart.candles.length > 0;
    const isUnknown = known === false && state?.lake?.state === "filled" && chart.timeline.hasOldest;
    const reason = isUnknown ? `There is no product ${symbol} in this lake.` : emptyText(state?.name === "live" || state?.name === "stale" ? null : state);
    setText(note, isThere ? "" : reason);
    if (isThere && known === false && status.hidden) setNote(status, `${symbol} has not traded in the last 25 hours of this lake.`);
  };

  const buttons = grains.map(([name], place) =>
    h("button", { className: "cp-button", textContent: name, title: `Candles of ${name} (${place + 1})`, "data-grain": name, onclick: () => choose(name, true) }),
  );
  find('[aria-label="Grain"]').append(...buttons);

  const choose = (name, isByViewer) => {
    if (name === grain) return;
    const middle = grain === null ? null : chart.middle();
    grain = name;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.grain === name));
    [measure.value, size.value] = isActivity(name) ? name.split(":") : ["", ""];
    size.hidden = !isActivity(name);
    if (isByViewer) {
      isFirst = false;
      isGrainChosen = true;
      if (name in seconds) writeStorage(GRAIN_KEY, name); // sizes differ by product
      writeAddress();
    }
    endCandles?.();
    chart.reset(seconds[name] ?? 0);
    const receive = (message) => {
      const isFew = isFirst && message.kind === "snapshot" && message.rows.length < FEW && seconds[name] === 60;
      isFirst &&= message.kind !== "snapshot";
      if (isFew) return choose(FINER, false);
      chart.receive(message);
      box.dataset.loaded = state?.lake?.loaded_us ?? "";
      showNote();
    };
    endCandles = isActivity(name) ? follow(receive) : subscribe(`candles/${symbol}/${name}`, receive);
    const at = wanted ?? (middle === null ? null : middle * 1000);
    if (at !== null) goTo(at, format.dateTime(at));
  };

  // Reads bars that end by activity, and again the newest ones while they are looked at, a fifth of the time at most.
  function follow(receive) {
    let due = null;
    const read = async () => {
      const [began, mine, { live }] = [performance.now(), due, chart.timeline];
      try {
        let page = document.hidden ? null : await load(live.length ? { start: live.last } : {});
        const isSame = live.length > 0 && page?.rows[0]?.[0] === live.last;
        if (page && live.length && !isSame) page = await load({}); // a trade that came late has moved the bars after it
        if (due !== mine) return;
        if (page) receive({ ...page, kind: isSame ? "change" : "snapshot" });
      } catch (error) {
        if (due === mine) setNote(status, `Bars could not be read: ${error.message}`);
      }
      if (due === mine) due = setTimeout(read, Math.max(FOLLOW_MS, 5 * (performance.now() - began)));
    };
    read();
    return () => (due = void clearTimeout(due));
  }

  const episodes = new Episodes({
    path,
    onChange: () => {
      showAlerts();
      if (isArriving && episodes.get(chosen)) show(chosen);
    },
  });
  let isArriving = chosen !== null; // the address names an episode, but no time

  // Marks an episode and brings it into view.
  function show(id) {
    const alert = episodes.get(id);
    chosen = id || null;
    showAlerts();
    if (!alert) return;
    isArriving = false;
    const list = find(".cp-alerts");
    const top = (list.querySelector("[aria-pressed=true]")?.offsetTop ?? 0) - list.offsetTop;
    if (top >= 0 && (top < list.scrollTop || top > list.scrollTop + list.clientHeight - 60)) list.scrollTop = top - 60; // the list alone
    goTo(alert.opened_at / 1000, `${format.dateTime(alert.opened_at / 1000)}, when the alert opened`);
  }

  const ends = [
    onHash((id) => {
      show(id);
      writeAddress(); // after Back, the address lacks the visible time
    }),
    () => endCandles?.(),
    () => clearTimeout(addressing),
    () => chart.unmount(),
    () => episodes.unmount(),
    subscribe(`product/${symbol}`, (message) => {
      known = message.figures !== null;
      if (known) showFigures(message.figures, message.decimals);
      else if (!chart.candles.length && !chart.timeline.hasOldest) chart.readOn();
      element.dataset.loaded = message.loaded_us ?? "";
      showNote();
    }),
    watchState((now) => {
      state = now;
      showNote();
    }),
    format.onZone(() => {
      showAlerts();
      showZone();
    }),
    onKey((event) => {
      const keys = {
        ArrowLeft: () => chart.move(-0.1),
        ArrowRight: () => chart.move(0.1),
        "+": () => chart.zoom(0.8),
        "=": () => chart.zoom(0.8),
        "-": () => chart.zoom(1.25),
        0: toLatest,
        d: () => date.focus(),
        ",": () => toAlert(-1),
        ".": () => toAlert(1),
      };
      const wantedGrain = grains[Number(event.key) - 1];
      if (wantedGrain) choose(wantedGrain[0], true);
      else if (keys[event.key]) {
        event.preventDefault();
        keys[event.key]();
      }
    }),
  ];

  function showFigures(values, decimals) {
    dayFigures = values;
    const text = format.price(values.price, decimals);
    setText(find(".cp-price"), text);
    document.title = `${text} ${TITLE}`;
    for (const [name, value] of changes) {
      setText(value, format.percent(values[name]));
      value.dataset.direction = format.direction(values[name]);
    }
    for (const name of ["high", "low"]) totals[name](format.price(values[`${name}_24h`], decimals));
    for (const name of ["volume", "notional"]) totals[name](format.amount(values[`${name}_24h`]));
    totals.trades(format.count(values.trades_24h));
    totals.average(format.price(values.average_1h, decimals));
    totals.buyers(format.share(values.buy_share_1h));
    box.setAttribute("aria-label", `Candles of ${symbol}, last price ${text}`);
  }

  function showAlerts() {
    const alerts = episodes.rows().sort((a, b) => b.opened_at - a.opened_at);
    chart.setAlerts(alerts, chosen);
    const { total } = episodes;
    find(".cp-count").textContent = total ? (alerts.length < total ? `${format.count(alerts.length)} of ${format.count(total)}` : format.count(total)) : "";
    const list = find(".cp-alerts");
    const told = (textContent) => h("li", { className: "cp-empty", textContent });
    if (!alerts.length) return list.replaceChildren(told(episodes.error || (episodes.isRead ? "None so far." : "Reading …")));
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    list.replaceChildren(...alerts.map(alertItem));
    if (!episodes.isRead) list.append(told("Reading the others …"));
    else if (episodes.total !== null && !episodes.isLast) {
      const onclick = (event) => {
        event.preventDefault();
        episodes.older();
      };
      list.append(h("li", {}, h("a", { className: "cp-more", href: "#", textContent: "Older alerts", onclick })));
    }
    if (focused) [...list.querySelectorAll("button")].find((one) => one.dataset.id === focused)?.focus({ preventScroll: true });
  }

  function alertItem(alert) {
    const percent = h("b", { "data-direction": directionOf(alert), textContent: measured(alert) });
    const openedMs = alert.opened_at / 1000;
    const what = `${format.moment(openedMs)} · ${format.pricesAlike(alert.start_price, alert.end_price).join(" → ")}`;
    const lasted = alert.state === "OPEN" ? tag("OPEN") : format.age((alert.last_trigger_at - alert.opened_at) / 1e6);
    const button = h(
      "button",
      { title: `${format.dateTime(openedMs)}: show it in the chart`, "data-id": alert.alert_id, "aria-pressed": String(alert.alert_id === chosen) },
      h("span", {}, `${words(alert.alert_type)} `, percent),
      h("span", { className: "cp-end" }, tag(alert.severity)),
      h("small", {}, what),
      h("small", { className: "cp-end" }, lasted),
    );
    button.onclick = () => {
      if (currentHash() === alert.alert_id) show(alert.alert_id); // chosen again: moves back to it
      else location.hash = `#${encodeURIComponent(alert.alert_id)}`;
    };
    return h("li", {}, button);
  }

  function showZone() {
    jump.title = `A date, with or without a time, in ${format.zoneName()}`;
    date.setAttribute("aria-label", `Date, ${format.zoneName()}`);
    time.setAttribute("aria-label", `Time, ${format.zoneName()}`);
  }

  // Shows the next alert after (1) or before (-1) the chosen one, or the visible range; reads older ones if necessary.
  async function toAlert(way) {
    const [first, last] = chart.shown().map((place) => chart.candles.times[place] * 1e6);
    const isSeen = ({ opened_at: at }) => at >= first && at < last + (seconds[grain] ?? DAY_S) * 1e6;
    const find = () => {
      const rows = episodes.rows().sort((a, b) => way * (a.opened_at - b.opened_at) || (a.alert_id < b.alert_id ? -1 : 1));
      const place = rows.findIndex((alert) => alert.alert_id === chosen && isSeen(alert));
      return place < 0 ? rows.find((alert) => (way > 0 ? alert.opened_at > first : alert.opened_at < last)) : rows[place + 1];
    };
    while (way < 0 && !find() && !episodes.isLast && !episodes.error) await episodes.older();
    const found = find();
    if (found) location.hash = `#${encodeURIComponent(found.alert_id)}`;
    else setNote(status, `There is no ${way < 0 ? "earlier" : "later"} alert of ${symbol}.`);
  }

  // Shows the newest candles, and removes the episode from the address, to which a reload would return.
  function toLatest() {
    setNote(status, "");
    if (location.hash) replaceAddress({ hash: "" });
    show(null);
    chart.follow();
  }

  latest.onclick = toLatest;
  for (const button of element.querySelectorAll("[data-way]")) button.onclick = () => toAlert(Number(button.dataset.way));
  const chooseSize = (event) => {
    event.preventDefault();
    size.step = measure.value.startsWith("trade") ? "1" : "any"; // they are counted
    if (measure.value && size.value > 0 && size.reportValidity()) choose(`${measure.value}:${size.value}`, true);
    else if (!measure.value) choose("1m", true);
  };
  measure.onchange = (event) => {
    size.value = measure.value && dayFigures ? Number(ACTIVITY[measure.value][1](dayFigures).toPrecision(1)) || 1 : "";
    chooseSize(event);
  };
  size.onchange = size.form.onsubmit = chooseSize;
  jump.onsubmit = (event) => {
    event.preventDefault();
    const ms = Date.parse(`${date.value}T${time.value || "00:00"}${format.zone() === "utc" ? "Z" : ""}`);
    if (!Number.isNaN(ms)) goTo(ms, format.dateTime(ms));
  };
  for (const button of element.querySelectorAll("[data-line]")) {
    button.onclick = () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      chart.show(button.dataset.line, isShown);
    };
  }
  const given = new URLSearchParams(location.search);
  const first = [given.get("grain"), readStorage(GRAIN_KEY)].find((name) => name in seconds || isActivity(name));
  isGrainChosen = first === given.get("grain");
  wanted = msOf(given.get("at"));
  if (given.get("candles") > 0) chart.setSpan(Number(given.get("candles")));
  isFirst = !first && wanted === null;
  if (wanted !== null) isArriving = false;
  else if (given.has("at")) setNote(status, `${given.get("at")} is not a time (expected as in 2025-10-10T21:15, UTC).`);
  showZone();
  choose(first ?? "1m", false);
  episodes.read({ symbol });
  element.chart = chart; // for tests and measurements
  return { unmount: () => ends.forEach((end) => end()) };
}
