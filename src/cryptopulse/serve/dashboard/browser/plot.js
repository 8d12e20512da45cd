// A chart of rows from the server: lines or bars over time or names, in the colours of the theme.

import { h } from "./dom.js";
import { baseOption, createChart, followZoom, labelStyle, tooltip, xAxis } from "./echart.js";
import * as format from "./format.js";
import { token } from "./theme.js";

const UNITS = {
  ms: (value) => (value >= 10_000 ? format.age(value / 1000) : format.known(value) ? `${value >= 100 ? Math.round(value) : Number(value.toPrecision(3))}\u202fms` : format.NONE),
  count: format.count,
  amount: format.amount,
};
const EDGE_PX = 36; // half the width of a date label, so that the last one is not cut

export class Plot {
  // `kind`: "line" or "bar"; `x`: "time" (ms since 1970) or "name"; `unit`: one of UNITS. Keeps the zoom when points change.
  constructor(parent, { kind, x, unit, height, stack = false }) {
    Object.assign(this, { kind, isTime: x === "time", format: UNITS[unit], stack, series: [] });
    this.box = h("div", { hidden: true });
    this.box.style.height = `${height}px`;
    parent.append(this.box);
    Object.assign(this, createChart(this.box, () => this.draw()));
    if (this.isTime) followZoom(this.chart, () => this.extent());
  }

  // series: [{name, points: [[x, y], …], color}]; `color`: a name in the style sheet, such as "line-1" or "up".
  show(series) {
    this.series = series;
    this.box.hidden = !series.some(({ points }) => points.length);
    this.draw();
  }

  // First and last time of the points.
  extent() {
    const times = this.series.flatMap(({ points }) => points.map(([at]) => at));
    return [Math.min(...times), Math.max(...times)];
  }

  draw() {
    if (this.box.hidden) return;
    this.chart.resize(); // it may have been hidden
    const { series, isTime } = this;
    const label = { ...labelStyle(), hideOverlap: true };
    const legend = { type: "scroll", pageIconSize: 9, pageTextStyle: label, pageIconColor: token("dim"), top: 4, left: 8, itemWidth: 12, itemHeight: 3, icon: "rect", textStyle: label };
    const option = {
      ...baseOption(),
      grid: { left: 12, right: isTime ? EDGE_PX : 24, top: series.length > 1 ? 34 : 14, bottom: 8, containLabel: true },
      legend: series.length > 1 ? legend : { show: false },
      tooltip: tooltip({
        axisPointer: { label: { formatter: ({ value }) => (isTime ? format.dateTime(value) : value) } },
        valueFormatter: this.format,
      }),
      xAxis: xAxis(this.chart, isTime ? this.extent() : null),
      yAxis: {
        type: "value",
        splitLine: { lineStyle: { color: token("line-soft") } },
        axisLabel: { ...label, formatter: this.format },
      },
      dataZoom: isTime ? [{ type: "inside", filterMode: "none" }] : [],
      series: series.map(({ name, points, color }, place) => ({
        name,
        type: this.kind,
        data: points,
        stack: this.stack ? "all" : undefined,
        showSymbol: false,
        barMaxWidth: 22,
        lineStyle: { width: 1.5 },
        itemStyle: { color: token(color ?? `line-${(place % 5) + 1}`) },
        emphasis: { disabled: true },
      })),
    };
    this.chart.setOption(option, { replaceMerge: ["series"] });
  }
}
