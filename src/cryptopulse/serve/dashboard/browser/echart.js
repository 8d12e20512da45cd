// Common to all charts: ECharts in the colours of the theme, drawn again when size, theme or time zone change.

import { echarts } from "nicegui-echart";
import { timeLabels } from "./axis.js";
import { onZone } from "./format.js";
import { onTheme, token } from "./theme.js";

const FONT = "Roboto, system-ui, sans-serif";

// Makes a chart in `element`: {chart, unmount}. `onResize()` and `onStyle()` must draw it again.
export function createChart(element, onResize, onStyle = onResize) {
  const chart = echarts.init(element, null, { renderer: "canvas" });
  const resizer = new ResizeObserver(() => {
    chart.resize();
    onResize();
  });
  resizer.observe(element);
  const ends = [onTheme(onStyle), onZone(onStyle)];
  return {
    chart,
    unmount() {
      resizer.disconnect();
      for (const end of ends) end();
      chart.dispose();
    },
  };
}

// Options of every chart.
export function baseOption() {
  return { animation: false, backgroundColor: "transparent", textStyle: { fontFamily: FONT } };
}

export function labelStyle() {
  return { color: token("dim"), fontSize: 11, fontFamily: FONT };
}

export function tooltip(rest) {
  return {
    trigger: "axis",
    confine: true,
    backgroundColor: token("raised"),
    borderColor: token("line"),
    textStyle: { color: token("text"), fontSize: 12 },
    ...rest,
  };
}

// The horizontal axis; a time axis when `extent`, [first, last] in ms, is given.
export function xAxis(chart, extent = null) {
  return {
    type: extent ? "time" : "category",
    axisLine: { lineStyle: { color: token("line") } },
    axisTick: { show: false },
    splitLine: { show: false },
    axisLabel: { ...labelStyle(), hideOverlap: true, ...(extent ? timeLabels(...extent, chart.getWidth()) : {}) },
  };
}

// Adapts the labels of a time axis when it is zoomed. `extent()`: [first, last] time of the data in ms.
export function followZoom(chart, extent) {
  chart.on("datazoom", () => {
    const { startValue, endValue } = chart.getOption().dataZoom[0];
    const [first, last] = extent();
    chart.setOption({ xAxis: { axisLabel: timeLabels(startValue ?? first, endValue ?? last, chart.getWidth()) } });
  });
}
