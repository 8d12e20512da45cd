// A chart of rows that the server hands over: lines or bars over time or names, in the colours of the theme.
//
// options: {kind: "line" | "bar", x: "time" | "name", series: [{name, points: [[x, y], …], color}], unit, height, stack,
// empty, stepMs}. `x` of time is in ms since 1970, of rows that are `stepMs` apart; `color` is a name of the style sheet, as "line-1" or "up"; `unit` a kind of
// number: "ms", "count", "amount", "percent", "price". A zoom stays when the points change.

import { echarts } from "nicegui-echart";
import * as format from "./format.js";
import { onTheme, token } from "./theme.js";

const UNITS = {
  ms: (value) => (value >= 10_000 ? format.age(value / 1000) : format.known(value) ? `${value >= 100 ? Math.round(value) : Number(value.toPrecision(3))}\u202fms` : format.NONE),
  count: format.count,
  amount: format.amount,
  percent: (value) => format.percent(value).replace("+", ""),
  price: (value) => (format.known(value) ? String(Number(value.toPrecision(8))) : format.NONE),
};

export function mount(element, options) {
  let shown = options;
  const box = document.createElement("div");
  box.style.height = `${options.height ?? 220}px`;
  const note = Object.assign(document.createElement("p"), { className: "cp-empty" });
  element.append(box, note);
  const chart = echarts.init(box, null, { renderer: "canvas" });
  const draw = () => {
    const isEmpty = !shown.series.some(({ points }) => points.length);
    note.textContent = shown.empty ?? "Nothing to show yet.";
    note.hidden = !isEmpty;
    box.hidden = isEmpty;
    if (isEmpty) return;
    chart.resize();
    chart.setOption(optionOf(shown), { replaceMerge: ["series"] });
  };
  const resizer = new ResizeObserver(() => chart.resize());
  resizer.observe(element);
  const ends = [onTheme(draw), format.onZone(draw)];
  draw();
  return {
    change(next) {
      shown = next;
      draw();
    },
    unmount() {
      resizer.disconnect();
      for (const end of ends) end();
      chart.dispose();
    },
  };
}

function optionOf({ kind, x, stepMs, series, unit, stack }) {
  const show = UNITS[unit] ?? UNITS.count;
  const label = { color: token("dim"), fontSize: 11, fontFamily: "Roboto, system-ui, sans-serif", hideOverlap: true };
  const isTime = x === "time";
  return {
    animation: false,
    textStyle: { fontFamily: "Roboto, system-ui, sans-serif" },
    grid: { left: 12, right: 24, top: series.length > 1 ? 34 : 14, bottom: 8, containLabel: true },
    legend: series.length > 1 ? { type: "scroll", pageIconSize: 9, pageTextStyle: label, pageIconColor: token("dim"), top: 4, left: 8, itemWidth: 12, itemHeight: 3, icon: "rect", textStyle: label } : { show: false },
    tooltip: {
      trigger: "axis",
      confine: true,
      backgroundColor: token("raised"),
      borderColor: token("line"),
      textStyle: { color: token("text"), fontSize: 12 },
      axisPointer: { label: { formatter: ({ value }) => (isTime ? format.dateTime(value) : value) } },
      valueFormatter: show,
    },
    xAxis: {
      type: isTime ? "time" : "category",
      minInterval: stepMs,
      axisLine: { lineStyle: { color: token("line") } },
      axisTick: { show: false },
      splitLine: { show: false },
      axisLabel: { ...label, ...(isTime ? { formatter: (ms) => format.moment(ms) } : {}) },
    },
    yAxis: {
      type: "value",
      splitLine: { lineStyle: { color: token("line-soft") } },
      axisLabel: { ...label, formatter: show },
    },
    dataZoom: isTime ? [{ type: "inside", filterMode: "none" }] : [],
    series: series.map(({ name, points, color }, place) => ({
      name,
      type: kind,
      data: points,
      stack: stack ? "all" : undefined,
      showSymbol: false,
      barMaxWidth: 22,
      lineStyle: { width: 1.5 },
      itemStyle: { color: token(color ?? `line-${(place % 5) + 1}`) },
      emphasis: { disabled: true },
    })),
  };
}
