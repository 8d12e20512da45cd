// A product's price over some time, with marks: decisive trades, episodes.

import { h } from "./dom.js";
import { baseOption, createChart, followZoom, labelStyle, tooltip, xAxis } from "./echart.js";
import * as format from "./format.js";
import { token } from "./theme.js";

const TOP = 22;
const STRIP_PX = 5;

export class PriceChart {
  // `onPick(name)` is called with the name of a clicked area.
  constructor(parent, { height, label, onPick = () => {} }) {
    const box = h("div", { role: "img", "aria-label": label });
    box.style.height = `${height}px`;
    parent.append(box);
    Object.assign(this, createChart(box, () => this.draw()));
    this.chart.on("click", (event) => event.data?.name && onPick(event.data.name));
    followZoom(this.chart, () => this.extent());
    this.clear();
  }

  clear() {
    this.show({ bars: [], grainS: 0, decimals: 2, isSame: true });
  }

  // bars: [{window_start (ms), low, high, close}], of `grainS` seconds each; points: [{at (ms), price, words, color, position}];
  // areas: [{name, from (ms), until (ms), color}]. The zoom is kept if `isSame`.
  show({ bars, grainS, points = [], areas = [], decimals, isSame = false }) {
    // A bar's close is drawn at the bar's end, so that a trade within the bar lies on the line.
    this.bars = bars.map((bar) => ({ ...bar, at: bar.window_start + grainS * 1000 }));
    Object.assign(this, { points, areas, decimals });
    this.draw(isSame);
  }

  extent() {
    return [this.bars[0]?.at ?? 0, this.bars[this.bars.length - 1]?.at ?? 0];
  }

  draw(isSame = true) {
    const band = (name, values, rest) => ({ name, type: "line", data: values, stack: "band", symbol: "none", silent: true, lineStyle: { opacity: 0 }, emphasis: { disabled: true }, tooltip: { show: false }, z: 1, ...rest });
    this.chart.setOption(
      {
        ...baseOption(),
        grid: { left: 26, right: 12, top: TOP, bottom: format.isToday(this.extent()[0]) ? 8 : 20, containLabel: true },
        tooltip: tooltip({ formatter: (parts) => this.tooltipHtml(parts) }),
        xAxis: xAxis(this.chart, this.extent()),
        yAxis: {
          type: "value",
          scale: true,
          boundaryGap: ["14%", "14%"], // room for the texts of the marks
          position: "right",
          splitLine: { lineStyle: { color: token("line-soft") } },
          axisLabel: { ...labelStyle(), hideOverlap: true, formatter: (value) => format.price(value, this.decimals) },
        },
        dataZoom: [{ type: "inside", filterMode: "none", ...(isSame ? {} : { start: 0, end: 100 }) }],
        series: [
          band("low", this.bars.map((bar) => [bar.at, bar.low]), {}),
          band("span", this.bars.map((bar) => [bar.at, bar.high - bar.low]), { areaStyle: { color: token("accent"), opacity: 0.35 } }),
          {
            name: "price",
            type: "line",
            data: this.bars.map((bar) => [bar.at, bar.close]),
            showSymbol: false,
            lineStyle: { width: 1.4, color: token("line-1") },
            itemStyle: { color: token("line-1") },
            emphasis: { disabled: true },
            z: 3,
            markArea: {
              label: { show: false },
              data: this.areas.map(({ name, from, until, color }) => {
                const isLong = until - from > (this.extent()[1] - this.extent()[0]) / 2; // as in the chart of candles
                return [
                  { name, xAxis: from, itemStyle: { color: token(color), opacity: isLong ? 0.8 : 0.15 }, y: isLong ? TOP : undefined },
                  { xAxis: until, y: isLong ? TOP + STRIP_PX : undefined },
                ];
              }),
            },
          },
          {
            name: "marks",
            type: "scatter",
            z: 5,
            tooltip: { show: false },
            silent: true,
            data: this.points.map(({ at, price, words, color, position = "top" }) => ({
              value: [at, price],
              symbol: "circle",
              symbolSize: 9,
              itemStyle: { color: token(color), borderColor: token("surface"), borderWidth: 2 },
              label: { show: Boolean(words), formatter: words, position, color: token(color), fontSize: 11, distance: 7 },
            })),
          },
        ],
      },
      { replaceMerge: ["series"] },
    );
  }

  tooltipHtml(parts) {
    const at = parts[0]?.value?.[0];
    const bar = this.bars.find((one) => one.at === at);
    if (!bar) return "";
    const low = bar.low === bar.high ? "" : `<br>${format.price(bar.low, this.decimals)} – ${format.price(bar.high, this.decimals)}`;
    return `${format.dateTime(at)}<br><b>${format.price(bar.close, this.decimals)}</b>${low}`;
  }
}

// How many decimals the prices of `bars` need to be told apart, at most 12.
export function decimalsOf(bars) {
  const decimals = (value) => {
    const [digits, exponent] = String(Number(value.toPrecision(12))).split("e-");
    return (digits.split(".")[1]?.length ?? 0) + Number(exponent ?? 0);
  };
  return Math.min(bars.reduce((most, bar) => Math.max(most, decimals(bar.low), decimals(bar.high)), 0), 12);
}
