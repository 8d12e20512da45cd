// One product, live: price and changes, its chart, its figures, its alerts.

import { subscribe, watchState } from "./live.js";
import * as format from "./format.js";
import { CandleChart } from "./chart.js";
import { emptyText, figure } from "./parts.js";
import { words } from "./table.js";

const GRAIN_KEY = "cryptopulse.grain";
const FEW = 15; // with fewer candles than this a finer grain says more
const FINER = "5s";
const TITLE = document.title;

export function mount(element, { symbol, grains }) {
  const seconds = Object.fromEntries(grains);
  const [base, quote] = symbol.split("-");
  element.classList.add("cp-product");
  element.innerHTML =
    '<div class="cp-product-head"><h1></h1><span class="cp-price">–</span><dl class="cp-changes"></dl></div>' +
    '<section class="cp-strip" aria-label="Figures"></section>' +
    '<div class="cp-columns"><section class="cp-panel" aria-label="Chart">' +
    '<div class="cp-chart-bar"><div class="cp-group" role="group" aria-label="Grain"></div><div class="cp-gap"></div>' +
    '<div class="cp-group" role="group" aria-label="Lines">' +
    lineButton("average_1h", "Average 1 h", "Mean price of the trades of the last hour") +
    lineButton("vwap", "VWAP", "Volume-weighted average price of each candle") +
    "</div>" +
    '<button class="cp-button" id="cp-latest" hidden title="Back to the newest candles (0)">Latest ⇥</button></div>' +
    '<div class="cp-legend" aria-live="off"></div>' +
    '<div class="cp-chart" role="img"><div class="cp-drawing"></div><div class="cp-note"></div></div></section>' +
    '<section class="cp-panel" aria-label="Alerts"><h2>Alerts</h2><ul class="cp-alerts"></ul></section></div>';
  const find = (selector) => element.querySelector(selector);
  find("h1").append(base, Object.assign(document.createElement("span"), { textContent: `-${quote ?? ""}` }));
  const priceText = find(".cp-price");
  const changes = ["1m", "5m", "1h", "24h"].map((span) => [`change_${span}`, change(find(".cp-changes"), span)]);
  const strip = find(".cp-strip");
  const figures = {
    high: figure(strip, "High 24 h"),
    low: figure(strip, "Low 24 h"),
    volume: figure(strip, `Volume 24 h, ${base}`),
    notional: figure(strip, `Volume 24 h, ${quote}`),
    trades: figure(strip, "Trades 24 h"),
    average: figure(strip, "Average 1 h", "Mean price of the trades of the last hour, each counting once"),
    buyers: figure(strip, "Buyers 1 h", "Share of the volume of the last hour of which the taker bought"),
  };
  const note = find(".cp-note");
  const latest = find("#cp-latest");
  const legend = find(".cp-legend");
  const box = find(".cp-chart");
  let state = null;
  let alerts = [];
  let known = null; // whether there is such a product
  let isFirst = true;
  let grain = null;
  let leave = null;

  const chart = new CandleChart(find(".cp-drawing"), {
    onHover: (row, decimals) => showLegend(legend, row, decimals, seconds[grain]),
    onMove: (isFollowing) => (latest.hidden = isFollowing),
  });

  const showNote = () => {
    const text =
      known === false && state?.name !== "loading" && state?.lake?.state === "filled"
        ? `There is no product ${symbol} in this lake.`
        : chart.candles.length
          ? ""
          : emptyText(state?.name === "live" || state?.name === "stale" ? null : state);
    if (note.textContent !== text) note.textContent = text;
  };

  const buttons = grains.map(([name], place) => {
    const button = Object.assign(document.createElement("button"), { className: "cp-button", textContent: name });
    button.dataset.grain = name;
    button.title = `Candles of ${name} (${place + 1})`;
    button.onclick = () => choose(name, true);
    find('[aria-label="Grain"]').append(button);
    return button;
  });

  const choose = (name, isAsked) => {
    if (name === grain) return;
    grain = name;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.grain === name));
    if (isAsked) {
      isFirst = false;
      store(GRAIN_KEY, name);
      history.replaceState(null, "", `?grain=${name}`);
    }
    leave?.();
    chart.reset(seconds[name]);
    leave = subscribe(`candles/${symbol}/${name}`, (message) => {
      if (isFirst && message.kind === "snapshot") {
        isFirst = false;
        if (message.rows.length < FEW && seconds[name] === 60) {
          choose(FINER, false);
          return;
        }
      }
      chart.take(message);
      box.dataset.loaded = state?.lake?.loaded_us ?? "";
      const average = message.rows[message.rows.length - 1]?.[message.columns.indexOf("average_1h")];
      if (message.rows.length) figures.average(format.price(average, message.decimals));
      showNote();
    });
  };

  const ends = [
    subscribe(`product/${symbol}`, (message) => {
      known = message.figures !== null;
      if (known) show(message.figures, message.decimals);
      element.dataset.loaded = message.loaded_us ?? "";
      showNote();
    }),
    subscribe("alerts", (message) => {
      const own = message.rows.filter((row) => row.symbol === symbol);
      if (message.kind === "snapshot") alerts = own;
      else {
        const replaced = new Set([...message.gone, ...own.map((row) => row.alert_id)]);
        if (!own.length && !alerts.some((row) => replaced.has(row.alert_id))) return;
        alerts = [...own, ...alerts.filter((row) => !replaced.has(row.alert_id))];
      }
      alerts.sort((a, b) => b.opened_at - a.opened_at);
      chart.setAlerts(alerts);
      showAlerts();
    }),
    watchState((now) => {
      state = now;
      showNote();
    }),
    format.onZone(() => showAlerts()),
    onKeys(),
  ];

  function show(values, decimals) {
    const text = format.price(values.price, decimals);
    if (priceText.textContent !== text) {
      priceText.textContent = text;
      document.title = `${text} ${TITLE}`;
    }
    for (const [name, set] of changes) set(values[name]);
    figures.high(format.price(values.high_24h, decimals));
    figures.low(format.price(values.low_24h, decimals));
    figures.volume(format.amount(values.volume_24h));
    figures.notional(format.amount(values.notional_24h));
    figures.trades(format.count(values.trades_24h));
    figures.buyers(format.share(values.buy_share_1h));
    box.setAttribute("aria-label", `Candles of ${symbol}, last price ${text}`);
  }

  function showAlerts() {
    const list = find(".cp-alerts");
    if (!alerts.length) {
      const empty = Object.assign(document.createElement("li"), { className: "cp-empty", textContent: "None so far." });
      list.replaceChildren(empty);
      return;
    }
    list.replaceChildren(
      ...alerts.map((alert) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        const direction = alert.price_change_pct > 0 ? "up" : "down";
        const percent = `<b data-direction="${direction}">${format.percent(alert.price_change_pct)}</b>`;
        const lasted = format.age((alert.last_trigger_at - alert.opened_at) / 1e6);
        const when = format.moment(alert.opened_at / 1000);
        button.innerHTML =
          `<span>${words(String(alert.alert_type).replace(/\W/g, ""))} ${percent}</span><span class="cp-end">${tag(alert.severity)}</span>` +
          `<small>${when} · ${format.pricesAlike(alert.start_price, alert.end_price).join(" → ")}</small>` +
          `<small class="cp-end">${alert.state === "OPEN" ? tag("OPEN") : lasted}</small>`;
        button.title = `${format.dateTime(alert.opened_at / 1000)}: show it in the chart`;
        button.onclick = () => chart.goTo(alert.opened_at / 1e6);
        item.append(button);
        return item;
      }),
    );
  }

  function onKeys() {
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName ?? "")) return;
      const keys = {
        ArrowLeft: () => chart.move(-0.1),
        ArrowRight: () => chart.move(0.1),
        "+": () => chart.zoom(0.8),
        "=": () => chart.zoom(0.8),
        "-": () => chart.zoom(1.25),
        0: () => chart.follow(),
      };
      const wanted = grains[Number(event.key) - 1];
      if (wanted) choose(wanted[0], true);
      else if (keys[event.key]) {
        event.preventDefault();
        keys[event.key]();
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }

  latest.onclick = () => chart.follow();
  for (const button of element.querySelectorAll("[data-line]")) {
    button.onclick = () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      chart.show(button.dataset.line, isShown);
    };
  }
  const asked = new URLSearchParams(location.search).get("grain");
  const stored = read(GRAIN_KEY);
  const first = [asked, stored].find((name) => name in seconds);
  isFirst = !first;
  choose(first ?? "1m", false);
  showAlerts();
  element.chart = chart; // for whoever looks from outside: tests, measurements
  return {
    unmount() {
      leave?.();
      for (const end of ends) end();
      chart.unmount();
    },
  };
}

function lineButton(name, text, title) {
  return `<button class="cp-button" data-line="${name}" aria-pressed="true" title="${title}">${text}</button>`;
}

function tag(value) {
  const name = String(value).replace(/\W/g, ""); // it becomes HTML
  return `<span class="cp-tag" data-value="${name}">${words(name)}</span>`;
}

function change(list, span) {
  const pair = document.createElement("div");
  const value = document.createElement("dd");
  pair.append(Object.assign(document.createElement("dt"), { textContent: span.replace(/(\d+)/, "$1\u202f") }), value);
  list.append(pair);
  return (percent) => {
    const text = format.percent(percent);
    if (value.textContent !== text) value.textContent = text;
    value.dataset.direction = format.direction(percent);
  };
}

function showLegend(legend, row, decimals, grainS) {
  if (!row) {
    legend.replaceChildren();
    return;
  }
  const direction = row.close >= row.open ? "up" : "down";
  const ms = row.time * 1000;
  const parts = [
    ["", `${format.date(ms)} ${format.clock(ms, grainS < 60)}`],
    ["O", format.price(row.open, decimals), direction],
    ["H", format.price(row.high, decimals), direction],
    ["L", format.price(row.low, decimals), direction],
    ["C", format.price(row.close, decimals), direction],
    ["", format.percent(100 * (row.close / row.open - 1)), direction],
    ["Vol", format.amount(row.volume)],
    ["Bought", format.share((100 * row.buy_volume) / row.volume)],
    ["VWAP", format.price(row.vwap, decimals)],
    ["Avg 1 h", format.price(row.average_1h, decimals)],
    ["Trades", format.count(row.trade_count)],
  ];
  legend.replaceChildren(
    ...parts.map(([name, text, way]) => {
      const part = document.createElement("span");
      const value = Object.assign(document.createElement("b"), { textContent: text });
      if (way) value.dataset.direction = way;
      part.append(name ? `${name} ` : "", value);
      return part;
    }),
  );
}

function read(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function store(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // it holds for this page
  }
}
