// The chart of a product: candles, averages, volume and pressure over one axis of time, and the alerts on it.
//
// The visible range is kept as times, not as indexes or percentages: it stays when new candles come, and moves along only
// while it contains the newest candle.

import { colorOf, measured, strength } from "./alert_words.js";
import { LABEL_PX, roundPlaces } from "./axis.js";
import { baseOption, createChart, labelStyle, xAxis } from "./echart.js";
import * as format from "./format.js";
import { words } from "./panels.js";
import { token } from "./theme.js";
import { Timeline } from "./timeline.js";

const DRAW_EVERY_MS = 150;
export const DAY_S = 86_400; // a bar that ends by activity ends with its day
const SHOWN_FIRST = 120;
const SHOWN_FIRST_NARROW = 60;
const SHOWN_MIN = 8;
const SHOWN_MAX = 2400; // beyond that a candle is thinner than a pixel, and the timeline keeps little more
const GAP_SHARE = 0.03; // share of the visible range that is left free after the newest candle
const EDGE = 100; // candles: when the view is this near to the end of the data, more is read
const LEFT = 8;
const TOP = 14;
const STRIP_PX = 5;
const LABEL_HIGH_PX = 17;
const PRICE_SHARE = 0.6; // of the height
const ROOM = 0.09; // space above and below the prices, for the texts of alerts
const LETTER_PX = 6.2; // approximate width of a letter in 11 px Roboto
const MARK_PX = 9; // from the price to the middle of an alert's triangle
const TEXT_PX = 13; // from there to the middle of its text, and the height of a text
const LANES = 2; // heights at which a text is tried, the nearest first
const CHOSEN_LANES = 12;
const TEXTS_MAX = 60;

// The pressure's scale is symmetric: up to the next of 10, 20, 50 and 100 percent.
function even(min, max) {
  const most = Math.max(Math.abs(min || 0), Math.abs(max || 0));
  return [10, 20, 50].find((one) => most <= one) ?? 100;
}

export class CandleChart {
  // `load`: see Timeline. `onHover(row, decimals)` gets the candle under the pointer, or the newest one; `onMove()` is
  // called when the visible range has changed; `onRead(text)` gets the progress of reading.
  constructor(element, { load, onHover, onMove, onRead }) {
    Object.assign(this, { onHover, onMove, onRead });
    this.timeline = new Timeline(async (request) => {
      const page = await load(request);
      this.decimals = Math.max(this.decimals, page.decimals);
      return page;
    });
    this.alerts = [];
    this.chosen = null; // alert_id of the marked episode
    this.decimals = 0;
    this.grainS = 60;
    this.hidden = new Set();
    this.isFollowing = true;
    this.span = element.clientWidth < 600 ? SHOWN_FIRST_NARROW : SHOWN_FIRST;
    this.end = null; // time of the last visible candle while not following
    this.ticks = new Map(); // time of a labelled candle as text → whether it is the first label
    this.base = createChart(element, () => this.drawSoon(), () => this.style());
    this.chart = this.base.chart;
    this.chart.on("datazoom", () => this.zoomed());
    this.chart.on("updateAxisPointer", (event) => this.pointed(event));
    this.chart.getZr().on("globalout", () => this.pointed({}));
    this.style();
  }

  get candles() {
    return this.timeline.shown;
  }

  // Changes the grain (its seconds; 0 for bars that end by activity) and starts again at the newest candle.
  reset(grainS) {
    this.grainS = grainS;
    this.timeline.reset();
    this.isFollowing = true;
    this.hovered = null;
    this.draw();
  }

  receive(message) {
    this.decimals = Math.max(this.decimals, message.decimals);
    this.timeline.receive(message, this.isFollowing);
    if (message.kind === "snapshot") this.readOn();
    this.drawSoon();
  }

  setAlerts(rows, chosen) {
    this.alerts = rows;
    this.chosen = chosen;
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

  // First and last visible index.
  shown() {
    const last = this.candles.length - 1;
    const end = this.isFollowing || this.end === null ? last : Math.min(this.candles.within(this.end), last);
    return [Math.max(end - this.span + 1, 0), end];
  }

  // The time (seconds) in the middle of the visible range; null while the newest candles are followed.
  middle() {
    const [start, end] = this.shown();
    return this.isFollowing ? null : (this.candles.times[(start + end) >> 1] ?? null);
  }

  // Moves the visible range so that it ends with the index `place`.
  moveTo(place) {
    const last = this.candles.length - 1;
    const end = Math.min(Math.max(place, Math.min(this.span - 1, last)), last);
    this.isFollowing = this.timeline.isLive && end >= last;
    this.end = this.candles.times[end] ?? null;
    this.onMove();
    this.readOn();
    this.drawSoon();
  }

  // The viewer has zoomed or moved.
  zoomed() {
    if (this.isSetting || !this.candles.length) return;
    const { startValue, endValue } = this.chart.getOption().dataZoom[0];
    const end = Math.min(endValue, this.candles.length - 1);
    this.span = Math.max(end - Math.max(startValue, 0) + 1, SHOWN_MIN);
    this.moveTo(endValue);
  }

  // Moves by a part of the visible range; `zoom` scales it by a factor and keeps its end.
  move(part) {
    const [start, end] = this.shown();
    this.moveTo(end + (Math.round((end - start + 1) * part) || Math.sign(part)));
  }

  zoom(factor) {
    this.setSpan(this.span * factor);
    this.moveTo(this.shown()[1]);
  }

  // Sets how many candles are visible.
  setSpan(candles) {
    this.span = Math.min(Math.max(Math.round(candles), SHOWN_MIN), SHOWN_MAX);
  }

  follow() {
    this.timeline.toNewest();
    this.moveTo(this.candles.length - 1);
  }

  // Moves `time` (seconds) to the middle. Returns the time of the candle there, null when there is no candle at all.
  async goTo(time) {
    const isThere = await this.read(this.timeline.goTo(time));
    if (!isThere) return null;
    const place = Math.max(this.candles.within(time), 0);
    this.moveTo(place + (this.span >> 1));
    return this.candles.times[place];
  }

  // Reads more candles when the view is near the end of those that are loaded.
  async readOn() {
    const [start, end] = this.shown();
    const { timeline } = this;
    if (timeline.loading) return;
    const isOld = start < EDGE && !timeline.hasOldest;
    const isNew = end > this.candles.length - EDGE && !timeline.isLive;
    if (!isOld && !isNew) return;
    if (await this.read(isOld ? timeline.older() : timeline.newer())) {
      this.onMove();
      this.drawSoon();
      this.readOn();
    }
  }

  // Awaits `reading` and returns its result; reports the progress.
  async read(reading) {
    const slow = setTimeout(() => this.onRead("Reading older candles …"), 300);
    try {
      const found = await reading;
      this.onRead("");
      return found;
    } catch (error) {
      this.onRead(`Older candles could not be read: ${error.message}`);
      return false;
    } finally {
      clearTimeout(slow);
    }
  }

  pointed(event) {
    const axis = event.axesInfo?.find((one) => one.axisDim === "x");
    this.hovered = axis ? this.candles.times[axis.value] : null;
    this.showHovered();
  }

  showHovered() {
    const place = this.hovered === null || this.hovered === undefined ? this.shown()[1] : this.candles.placeOf(this.hovered);
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
    // Empty places after the newest candle, so that it does not touch the axis.
    const gap = this.isFollowing ? Math.max(Math.round(Math.min(this.span, rows.length) * GAP_SHARE), 1) : 0;
    for (let place = 1; place <= Math.max(gap, 1); place++) data.push(String((this.candles.last ?? 0) + place * (this.grainS || 1)));
    this.layOut(startValue, endValue + gap);
    this.isSetting = true;
    this.chart.setOption({
      grid: Array(3).fill({ right: this.right }),
      xAxis: [{ data }, { data }, { data }],
      dataZoom: [{ startValue, endValue: endValue + gap }],
      series: [
        {
          data: rows.map((row) => [row.open, row.close, row.low, row.high]),
          markArea: { data: this.areas() },
          markLine: { data: this.lastLine() },
        },
        { data: line("average_1h") },
        { data: line("vwap") },
        { data: rows.map((row) => row.buy_volume) },
        { data: rows.map((row) => row.sell_volume) },
        { data: rows.map((row) => row.net) },
      ],
    });
    // Only now is it known where prices are.
    const points = this.points();
    if (points.length || this.hasPoints) this.chart.setOption({ series: [{ markPoint: { data: points } }] });
    this.hasPoints = points.length > 0;
    this.isSetting = false;
    this.showHovered();
  }

  // Layout in pixels: the price axis is as wide as its labels, and round times are labelled.
  layOut(start, end) {
    const last = this.candles.rows[this.candles.length - 1];
    const widest = Math.max(format.price(last?.high, this.decimals).length, "Sell 100 %".length);
    this.right = Math.round(widest * LETTER_PX) + 18;
    const width = Math.max(this.chart.getWidth() - LEFT - this.right, 1);
    this.placeOf = (place) => LEFT + ((place - start + 0.5) * width) / Math.max(end - start + 1, 1);
    const offsetS = format.zoneOffsetS((this.candles.times[start] ?? 0) * 1000);
    const places = this.candles.length ? roundPlaces(this.candles.times, start, Math.min(end, this.candles.length - 1), Math.max(Math.floor(width / LABEL_PX), 1), offsetS) : [];
    // A label, centred on its tick, must not exceed the edge.
    const kept = places.filter((place) => this.placeOf(place) > LABEL_PX / 2 - LEFT && this.placeOf(place) < LEFT + width + this.right - LABEL_PX / 2);
    this.ticks = new Map(kept.map((place, at) => [String(this.candles.times[place]), at === 0]));
  }

  // Whether a label of the price axis would be hidden by that of the last price.
  isUnderLast(value) {
    const last = this.timeline.live.rows[this.timeline.live.length - 1];
    if (!last) return false;
    const [start, end] = this.shown();
    const rows = this.candles.rows.slice(start, end + 1);
    const names = ["average_1h", "vwap"].filter((name) => !this.hidden.has(name));
    const all = rows.flatMap((row) => [row.high, row.low, ...names.map((name) => row[name] ?? row.low)]);
    const range = (Math.max(...all) - Math.min(...all)) * (1 + 2 * ROOM);
    return Math.abs(value - last.close) < (LABEL_HIGH_PX * range) / (this.chart.getHeight() * PRICE_SHARE);
  }

  // The price of the newest trade, also while the past is shown, where it may be outside the visible range.
  lastLine() {
    const last = this.timeline.live.rows[this.timeline.live.length - 1];
    if (!last) return [];
    const color = token(last.close >= last.open ? "up" : "down");
    const label = { backgroundColor: color, color: token("bar"), formatter: format.price(last.close, this.decimals) };
    return [{ yAxis: last.close, lineStyle: { color }, label }];
  }

  // The chosen episode, from its first decisive trade to the last one over the threshold.
  areas() {
    return this.visibleAlerts()
      .filter((alert) => alert.alert_id === this.chosen)
      .map((alert) => {
        const last = this.candles.length - 1;
        const from = Math.max(this.candles.within(Math.min(alert.window_start, alert.opened_at) / 1e6), 0);
        const until = alert.state === "OPEN" ? last : Math.max(this.candles.within(alert.last_trigger_at / 1e6), from);
        const isLong = until - from > this.span / 2; // a strip instead of shading most of the chart
        const color = token(colorOf(alert) + (isLong ? "" : "-area"));
        return [
          { xAxis: String(this.candles.times[from]), itemStyle: { color }, name: alert.alert_id, y: isLong ? TOP : undefined },
          { xAxis: String(this.candles.times[Math.max(until, Math.min(from + 1, last))]), y: isLong ? TOP + STRIP_PX : undefined },
        ];
      });
  }

  // A mark for each candle and side with an episode, and texts where they cover neither another text, a mark, nor a candle:
  // first for the chosen one, then for the largest.
  points() {
    const [start, end] = this.shown();
    const right = this.chart.getWidth() - this.right;
    const yOf = (price) => this.chart.convertToPixel({ yAxisIndex: 0 }, price);
    const rank = (alert) => (alert.alert_id === this.chosen ? Infinity : strength(alert));
    const marks = new Map(); // the largest episode of each candle and side
    for (const alert of this.visibleAlerts().sort((a, b) => rank(b) - rank(a))) {
      const place = Math.max(this.candles.within(alert.opened_at / 1e6), 0);
      const side = colorOf(alert) === "down" ? "top" : "bottom";
      if (place < start || place > end || marks.has(place + side)) continue;
      const price = this.candles.rows[place][side === "top" ? "high" : "low"];
      marks.set(place + side, { alert, place, side, price, x: this.placeOf(place), y: yOf(price) + (side === "top" ? -MARK_PX : MARK_PX) });
    }
    if (!marks.size) return [];
    const boxes = [...marks.values()].map(({ x, y }) => [x - 5, y - 4, x + 5, y + 4]);
    const spans = this.candles.rows.slice(start, end + 1).map((row) => [yOf(row.high), yOf(row.low)]);
    const perCandle = this.placeOf(start + 1) - this.placeOf(start);
    const isFree = ([x0, y0, x1, y1]) =>
      boxes.every(([left, top, far, bottom]) => x1 <= left || far <= x0 || y1 <= top || bottom <= y0) &&
      spans.slice(Math.max(Math.floor((x0 - LEFT) / perCandle), 0), Math.ceil((x1 - LEFT) / perCandle)).every(([high, low]) => y1 <= high || low <= y0);
    const low = TOP + this.chart.getHeight() * PRICE_SHARE;
    let tried = 0;
    return [...marks.values()].map(({ alert, place, side, price, x, y }) => {
      const isChosen = alert.alert_id === this.chosen;
      const way = side === "top" ? -1 : 1;
      const percent = measured(alert, 1);
      const text = isChosen ? `${words(alert.alert_type)} ${percent}` : percent;
      const half = (text.length * LETTER_PX) / 2 + 3;
      const center = Math.min(Math.max(x, half), right - half);
      const boxAt = (lane) => [center - half, y + way * TEXT_PX * (lane + 1) - TEXT_PX / 2, center + half, y + way * TEXT_PX * (lane + 1) + TEXT_PX / 2];
      const lanes = [...Array(++tried > TEXTS_MAX ? 0 : isChosen ? CHOSEN_LANES : LANES).keys()];
      const isInside = ([, top, , bottom]) => top >= 0 && bottom <= low;
      const lane = lanes.find((one) => isInside(boxAt(one)) && isFree(boxAt(one))) ?? (isChosen ? 0 : null);
      if (lane !== null) boxes.push(boxAt(lane));
      const color = token(colorOf(alert));
      return {
        name: alert.alert_id,
        coord: [String(this.candles.times[place]), price],
        symbol: "triangle",
        symbolSize: isChosen ? [13, 11] : [9, 7],
        symbolRotate: way < 0 ? 180 : 0,
        symbolOffset: [0, way * MARK_PX],
        itemStyle: { color },
        label: { show: lane !== null, position: "inside", offset: [center - x, way * TEXT_PX * (lane + 1)], color, fontSize: 11, fontWeight: isChosen ? "bold" : "normal", textBorderColor: token("surface"), textBorderWidth: 2, formatter: text },
      };
    });
  }

  visibleAlerts() {
    if (!this.candles.length) return [];
    const until = this.candles.last + (this.grainS || DAY_S);
    return this.alerts.filter((alert) => alert.last_trigger_at / 1e6 >= this.candles.first && alert.opened_at / 1e6 < until);
  }

  // Everything but the data: colours, axes, zones.
  style() {
    const label = labelStyle();
    const pointer = (rest) => ({
      show: true,
      lineStyle: { color: token("dim"), type: "dashed", width: 1 },
      label: { color: token("text"), backgroundColor: token("raised"), fontSize: 11, ...rest },
    });
    const x = (gridIndex, isLabelled) => ({
      ...xAxis(this.chart),
      gridIndex,
      boundaryGap: true,
      axisLabel: {
        ...label,
        show: isLabelled,
        lineHeight: 14,
        interval: (_place, value) => this.ticks.has(value),
        formatter: (value) => format.tick(Number(value) * 1000, this.ticks.get(value)),
      },
      axisPointer: pointer({ show: isLabelled, formatter: ({ value }) => format.dateTime(Number(value) * 1000) }),
    });
    const y = (gridIndex, rest) => ({
      gridIndex,
      position: "right",
      splitLine: { lineStyle: { color: token("line-soft") } },
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
    const bar = (name, axis, itemStyle, stack) => ({
      name,
      type: "bar",
      silent: true,
      itemStyle,
      emphasis: { disabled: true },
      xAxisIndex: axis,
      yAxisIndex: axis,
      barCategoryGap: "25%",
      stack,
    });
    this.chart.setOption({
      ...baseOption(),
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      tooltip: { trigger: "axis", showContent: false, axisPointer: { type: "cross" } },
      grid: [
        { left: LEFT, top: TOP, height: `${100 * PRICE_SHARE}%` },
        { left: LEFT, top: "68%", height: "13%" },
        { left: LEFT, top: "84%", bottom: 38 },
      ],
      xAxis: [x(0, false), x(1, false), x(2, true)],
      yAxis: [
        y(0, {
          scale: true,
          boundaryGap: [`${100 * ROOM}%`, `${100 * ROOM}%`],
          axisPointer: pointer({ formatter: ({ value }) => format.price(value, this.decimals) }),
          axisLabel: { formatter: (value) => (this.isUnderLast(value) ? "" : format.price(value, this.decimals)) },
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
        { type: "inside", xAxisIndex: [0, 1, 2], filterMode: "filter", minValueSpan: SHOWN_MIN, maxValueSpan: SHOWN_MAX, moveOnMouseMove: true },
      ],
      series: [
        {
          name: "price",
          type: "candlestick",
          barMaxWidth: 18,
          itemStyle: { color: token("up"), borderColor: token("up"), color0: token("down"), borderColor0: token("down") },
          emphasis: { disabled: true },
          markArea: { silent: true, label: { show: false }, data: [] },
          markPoint: { silent: true, data: [] },
          markLine: {
            silent: true,
            symbol: "none",
            precision: -1, // else the line is drawn at the price rounded to two decimals
            lineStyle: { type: "dotted", width: 1 },
            label: { position: "end", distance: 3, padding: [3, 5], borderRadius: 3, fontSize: 11 },
            data: [],
          },
        },
        overlay("average_1h", "line-1", 1.4),
        overlay("vwap", "line-2", 1),
        bar("bought", 1, { color: token("up"), opacity: 0.62 }, "volume"),
        bar("sold", 1, { color: token("down"), opacity: 0.62 }, "volume"),
        bar("net", 2, { color: ({ value }) => token(value >= 0 ? "up" : "down") }),
      ],
    });
    this.drawSoon();
  }

  unmount() {
    clearTimeout(this.due);
    this.base.unmount();
  }
}
