// The chart of a product: candles, averages, volume and pressure over one axis of time, and the alerts on it.
//
// What the viewer looks at is kept as times, not as places or percents: so it stays when candles come, and slides along
// only while the newest candle is in it.

import { echarts } from "nicegui-echart";
import * as format from "./format.js";
import { onTheme, token } from "./theme.js";
import { Candles } from "./candles.js";
import { words } from "./table.js";

const DRAW_EVERY_MS = 150;
const SHOWN_FIRST = 120;
const SHOWN_FIRST_NARROW = 60;
const SHOWN_MIN = 8;
const GAP_SHARE = 0.03; // of what is shown, left free behind the newest candle

// The pressure's scale is as long upwards as downwards: the next of 10, 20, 50 and 100 percent.
function even(min, max) {
  const most = Math.max(Math.abs(min || 0), Math.abs(max || 0));
  return [10, 20, 50].find((one) => most <= one) ?? 100;
}

export class CandleChart {
  // `onHover(row)` gets the candle under the pointer, or the newest one; `onMove(isFollowing)` whether the newest is shown.
  constructor(element, { onHover, onMove }) {
    this.onHover = onHover;
    this.onMove = onMove;
    this.candles = new Candles();
    this.alerts = [];
    this.decimals = 2;
    this.grainS = 60;
    this.hidden = new Set();
    this.isFollowing = true;
    this.span = element.clientWidth < 600 ? SHOWN_FIRST_NARROW : SHOWN_FIRST;
    this.end = null; // time of the last candle that is shown while not following
    this.chart = echarts.init(element, null, { renderer: "canvas" });
    this.chart.on("datazoom", () => this.zoomed());
    this.chart.on("updateAxisPointer", (event) => this.pointed(event));
    this.chart.getZr().on("globalout", () => this.pointed({}));
    this.resizer = new ResizeObserver(() => this.chart.resize());
    this.resizer.observe(element);
    this.ends = [onTheme(() => this.style()), format.onZone(() => this.style())];
    this.style();
  }

  // Another grain or product: begins anew, at the newest candle.
  reset(grainS) {
    this.grainS = grainS;
    this.candles.clear();
    this.isFollowing = true;
    this.hovered = null;
    this.draw();
  }

  take(message) {
    this.decimals = message.decimals;
    this.candles.take(message.columns, message.rows, message.kind === "snapshot");
    this.drawSoon();
  }

  setAlerts(rows) {
    this.alerts = rows;
    this.drawSoon();
  }

  show(series, isShown) {
    if (isShown) this.hidden.delete(series);
    else this.hidden.add(series);
    this.drawSoon();
  }

  drawSoon() {
    if (this.due) return;
    const waitMs = Math.max(DRAW_EVERY_MS - (performance.now() - (this.drawnAt ?? -1e9)), 0);
    this.due = setTimeout(() => requestAnimationFrame(() => this.draw()), waitMs);
  }

  // First and last place that are shown.
  shown() {
    const last = this.candles.length - 1;
    const end = this.isFollowing || this.end === null ? last : Math.min(this.candles.within(this.end), last);
    return [Math.max(end - this.span + 1, 0), end];
  }

  // The viewer has zoomed or moved.
  zoomed() {
    if (this.isSetting || !this.candles.length) return;
    const zoom = this.chart.getOption().dataZoom[0];
    const last = this.candles.length - 1;
    const start = Math.max(zoom.startValue, 0);
    const end = Math.min(zoom.endValue, last);
    this.span = Math.max(end - start + 1, SHOWN_MIN);
    this.isFollowing = zoom.endValue >= last;
    this.end = this.candles.times[end];
    this.onMove(this.isFollowing);
    this.drawSoon();
  }

  // Moves by a part of what is shown; zooms by a factor around the end.
  move(part) {
    const [start, end] = this.shown();
    const by = Math.round((end - start + 1) * part) || Math.sign(part);
    const to = Math.min(Math.max(end + by, this.span - 1), this.candles.length - 1);
    this.isFollowing = to >= this.candles.length - 1;
    this.end = this.candles.times[to];
    this.onMove(this.isFollowing);
    this.draw();
  }

  zoom(factor) {
    this.span = Math.min(Math.max(Math.round(this.span * factor), SHOWN_MIN), Math.max(this.candles.length, SHOWN_MIN));
    this.draw();
  }

  follow() {
    this.isFollowing = true;
    this.onMove(true);
    this.draw();
  }

  // Brings the time (seconds) into the middle.
  goTo(time) {
    if (!this.candles.length) return false;
    const place = this.candles.within(time);
    if (place < 0) return false;
    const end = Math.min(place + Math.round(this.span / 2), this.candles.length - 1);
    this.isFollowing = end >= this.candles.length - 1;
    this.end = this.candles.times[end];
    this.onMove(this.isFollowing);
    this.draw();
    return true;
  }

  pointed(event) {
    const axis = event.axesInfo?.find((one) => one.axisDim === "x");
    this.hovered = axis ? this.candles.times[axis.value] : null;
    this.tellHover();
  }

  tellHover() {
    const place = this.hovered === null || this.hovered === undefined ? -1 : this.candles.placeOf(this.hovered);
    this.onHover(this.candles.rows[place] ?? this.candles.rows[this.candles.length - 1] ?? null, this.decimals);
  }

  draw() {
    clearTimeout(this.due);
    this.due = null;
    this.drawnAt = performance.now();
    const { rows, times } = this.candles;
    const line = (name) => (this.hidden.has(name) ? [] : rows.map((row) => row[name]));
    const [startValue, endValue] = this.shown();
    const data = times.map(String);
    // Free places behind the newest candle, so that it does not stick to the axis.
    const gap = this.isFollowing ? Math.max(Math.round(Math.min(this.span, rows.length) * GAP_SHARE), 1) : 0;
    const newest = times[times.length - 1] ?? 0;
    for (let place = 1; place <= Math.max(gap, 1); place++) data.push(String(newest + place * this.grainS));
    this.isSetting = true;
    this.chart.setOption({
      xAxis: [{ data }, { data }, { data }],
      dataZoom: [{ startValue, endValue: endValue + gap }],
      series: [
        {
          data: rows.map((row) => [row.open, row.close, row.low, row.high]),
          markArea: { data: this.areas() },
          markPoint: { data: this.points() },
          markLine: { data: this.lastLine() },
        },
        { data: line("average_1h") },
        { data: line("vwap") },
        { data: rows.map((row) => row.buy_volume) },
        { data: rows.map((row) => row.sell_volume) },
        { data: rows.map((row) => row.net) },
      ],
    });
    this.isSetting = false;
    this.tellHover();
  }

  lastLine() {
    const last = this.candles.rows[this.candles.length - 1];
    if (!last) return [];
    const color = token(last.close >= last.open ? "up" : "down");
    const label = { backgroundColor: color, color: token("bar"), formatter: format.price(last.close, this.decimals) };
    return [{ yAxis: last.close, lineStyle: { color }, label }];
  }

  // The episodes, from the price that they are measured from to the last trade over the threshold.
  areas() {
    const last = this.candles.length - 1;
    return this.visibleAlerts().map((alert) => {
      const from = this.candles.within(Math.floor(alert.window_start / 1e6 / this.grainS) * this.grainS);
      const until = alert.state === "OPEN" ? last : this.candles.within(alert.last_trigger_at / 1e6);
      const color = token(alert.alert_type === "FLASH_CRASH" ? "down-area" : "up-area");
      return [
        { xAxis: String(this.candles.times[Math.max(from, 0)]), itemStyle: { color }, name: alert.alert_id },
        { xAxis: String(this.candles.times[Math.max(until, from, 0)]) },
      ];
    });
  }

  points() {
    return this.visibleAlerts().map((alert) => {
      const place = Math.max(this.candles.within(alert.opened_at / 1e6), 0);
      const isCrash = alert.alert_type === "FLASH_CRASH";
      const row = this.candles.rows[place];
      return {
        name: alert.alert_id,
        coord: [String(row.time), isCrash ? row.high : row.low],
        symbol: "triangle",
        symbolSize: [10, 8],
        symbolRotate: isCrash ? 180 : 0,
        symbolOffset: [0, isCrash ? -9 : 9],
        itemStyle: { color: token(isCrash ? "down" : "up") },
        label: {
          show: true,
          position: isCrash ? "top" : "bottom",
          distance: 6,
          color: token(isCrash ? "down" : "up"),
          fontSize: 11,
          formatter: `${words(alert.alert_type)} ${format.percent(alert.price_change_pct, 1)}`,
        },
      };
    });
  }

  visibleAlerts() {
    const { times } = this.candles;
    if (!times.length) return [];
    const until = times[times.length - 1] + this.grainS;
    return this.alerts.filter((alert) => alert.last_trigger_at / 1e6 >= times[0] && alert.opened_at / 1e6 < until);
  }

  timeLabel(text) {
    const ms = Number(text) * 1000;
    if (this.grainS < 60) return format.clock(ms);
    const clock = format.clock(ms, false);
    return clock === "00:00" || this.grainS >= 3600 ? `${format.date(ms).slice(5)} ${clock}` : clock;
  }

  // Everything but the data: colours, axes, zones.
  style() {
    const [text, dim, line, faint, surface] = ["text", "dim", "line-soft", "line", "raised"].map(token);
    const label = { color: dim, fontSize: 11, fontFamily: "Roboto, system-ui, sans-serif" };
    const pointer = { show: true, lineStyle: { color: dim, type: "dashed", width: 1 }, label: { show: false } };
    const right = 84;
    const x = (gridIndex, isLabelled) => ({
      type: "category",
      gridIndex,
      boundaryGap: true,
      axisLine: { lineStyle: { color: faint } },
      axisTick: { show: false },
      splitLine: { show: false },
      axisLabel: {
        ...label,
        show: isLabelled,
        hideOverlap: true,
        alignMinLabel: "left",
        alignMaxLabel: "right",
        formatter: (value) => this.timeLabel(value),
      },
      axisPointer: {
        ...pointer,
        label: {
          show: isLabelled,
          color: text,
          backgroundColor: surface,
          fontSize: 11,
          formatter: ({ value }) => format.dateTime(Number(value) * 1000),
        },
      },
    });
    const y = (gridIndex, rest) => ({
      gridIndex,
      position: "right",
      splitLine: { lineStyle: { color: line } },
      axisLine: { show: false },
      axisTick: { show: false },
      axisPointer: { show: false },
      ...rest,
      axisLabel: { ...label, ...(rest.axisLabel ?? {}) },
    });
    const overlay = (name, color, width) => ({
      name,
      type: "line",
      showSymbol: false,
      silent: true,
      connectNulls: true,
      lineStyle: { color: token(color), width },
      itemStyle: { color: token(color) },
      emphasis: { disabled: true },
      z: 3,
    });
    const bar = (name, color, rest = {}) => ({
      name,
      type: "bar",
      silent: true,
      itemStyle: { color: token(color) },
      emphasis: { disabled: true },
      xAxisIndex: 1,
      yAxisIndex: 1,
      barCategoryGap: "25%",
      ...rest,
    });
    this.chart.setOption({
      animation: false,
      backgroundColor: "transparent",
      textStyle: { fontFamily: "Roboto, system-ui, sans-serif" },
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      tooltip: { trigger: "axis", showContent: false, axisPointer: { type: "cross" } },
      grid: [
        { left: 8, right, top: 14, height: "60%" },
        { left: 8, right, top: "68%", height: "13%" },
        { left: 8, right, top: "84%", bottom: 26 },
      ],
      xAxis: [x(0, false), x(1, false), x(2, true)],
      yAxis: [
        y(0, {
          scale: true,
          axisPointer: {
            show: true,
            lineStyle: { color: dim, type: "dashed" },
            label: {
              color: text,
              backgroundColor: surface,
              fontSize: 11,
              formatter: ({ value }) => format.price(value, this.decimals),
            },
          },
          axisLabel: { formatter: (value) => format.price(value, this.decimals) },
        }),
        y(1, { splitNumber: 2, axisLabel: { formatter: (value) => format.amount(value), showMinLabel: false } }),
        y(2, {
          min: ({ min, max }) => -even(min, max),
          max: ({ min, max }) => even(min, max),
          splitNumber: 2,
          axisLabel: { formatter: (value) => (value ? `${value > 0 ? "Buy" : "Sell"} ${Math.abs(value)}\u202f%` : "") },
        }),
      ],
      dataZoom: [
        { type: "inside", xAxisIndex: [0, 1, 2], filterMode: "filter", minValueSpan: SHOWN_MIN, moveOnMouseMove: true },
      ],
      series: [
        {
          name: "price",
          type: "candlestick",
          barMaxWidth: 18,
          itemStyle: {
            color: token("up"),
            borderColor: token("up"),
            color0: token("down"),
            borderColor0: token("down"),
          },
          emphasis: { disabled: true },
          markArea: { silent: true, label: { show: false }, data: [] },
          markPoint: { silent: true, data: [] },
          markLine: {
            silent: true,
            symbol: "none",
            lineStyle: { type: "dotted", width: 1 },
            label: { position: "end", distance: 3, padding: [3, 5], borderRadius: 3, fontSize: 11 },
            data: [],
          },
        },
        overlay("average_1h", "line-1", 1.4),
        overlay("vwap", "line-2", 1),
        bar("bought", "up", { stack: "volume", itemStyle: { color: token("up"), opacity: 0.62 } }),
        bar("sold", "down", { stack: "volume", itemStyle: { color: token("down"), opacity: 0.62 } }),
        {
          ...bar("net", "up"),
          xAxisIndex: 2,
          yAxisIndex: 2,
          itemStyle: { color: ({ value }) => token(value >= 0 ? "up" : "down") },
        },
      ],
    });
    this.drawSoon();
  }

  unmount() {
    clearTimeout(this.due);
    this.resizer.disconnect();
    for (const end of this.ends) end();
    this.chart.dispose();
  }
}
