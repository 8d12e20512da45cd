// A product's price over some time, with what is marked on it: decisive trades, episodes.

import { echarts } from "nicegui-echart";
import * as format from "./format.js";
import { onTheme, token } from "./theme.js";

export class MarkedPrice {
  // `onPick(name)` is called with the name of an area that is clicked.
  constructor(parent, { height, label, onPick = () => {} }) {
    this.box = document.createElement("div");
    this.box.className = "cp-marked";
    this.box.style.height = `${height}px`;
    this.box.setAttribute("role", "img");
    this.box.setAttribute("aria-label", label);
    parent.append(this.box);
    this.chart = echarts.init(this.box, null, { renderer: "canvas" });
    this.chart.on("click", (event) => event.data?.name && onPick(event.data.name));
    this.resizer = new ResizeObserver(() => this.chart.resize());
    this.resizer.observe(this.box);
    this.ends = [onTheme(() => this.draw()), format.onZone(() => this.draw())];
    this.clear();
  }

  clear() {
    this.bars = [];
    this.points = [];
    this.areas = [];
    this.decimals = 2;
    this.draw();
  }

  // bars: [{window_start (ms), low, high, close}], of `grainS` seconds each; points: [{at (ms), price, words, color, position}];
  // areas: [{name, from (ms), until (ms), color, words}]. A zoom stays when `isSame`.
  show({ bars, grainS, points = [], areas = [], decimals, isSame = false }) {
    // A bar's close stands at its end, so that a trade within it lies on the line.
    this.bars = bars.map((bar) => ({ ...bar, at: bar.window_start + grainS * 1000 }));
    Object.assign(this, { points, areas, decimals });
    this.draw(isSame);
  }

  draw(isSame = true) {
    const label = { color: token("dim"), fontSize: 11, fontFamily: "Roboto, system-ui, sans-serif", hideOverlap: true };
    const line = this.bars.map((bar) => [bar.at, bar.close]);
    const band = (name, values, rest) => ({ name, type: "line", data: values, stack: "band", symbol: "none", silent: true, lineStyle: { opacity: 0 }, emphasis: { disabled: true }, tooltip: { show: false }, z: 1, ...rest });
    this.chart.setOption(
      {
        animation: false,
        textStyle: { fontFamily: "Roboto, system-ui, sans-serif" },
        grid: { left: 26, right: 12, top: 22, bottom: 8, containLabel: true },
        tooltip: {
          trigger: "axis",
          confine: true,
          backgroundColor: token("raised"),
          borderColor: token("line"),
          textStyle: { color: token("text"), fontSize: 12 },
          formatter: (parts) => this.tip(parts),
        },
        xAxis: {
          type: "time",
          axisLine: { lineStyle: { color: token("line") } },
          axisTick: { show: false },
          splitLine: { show: false },
          axisLabel: { ...label, formatter: (ms) => format.moment(ms) },
        },
        yAxis: {
          type: "value",
          scale: true,
          boundaryGap: ["14%", "14%"], // room for the words at the marks
          position: "right",
          splitLine: { lineStyle: { color: token("line-soft") } },
          axisLabel: { ...label, formatter: (value) => format.price(value, this.decimals) },
        },
        dataZoom: [{ type: "inside", filterMode: "none", ...(isSame ? {} : { start: 0, end: 100 }) }],
        series: [
          band("low", this.bars.map((bar) => [bar.at, bar.low]), {}),
          band("span", this.bars.map((bar) => [bar.at, bar.high - bar.low]), { areaStyle: { color: token("accent"), opacity: 0.35 } }),
          {
            name: "price",
            type: "line",
            data: line,
            showSymbol: false,
            lineStyle: { width: 1.4, color: token("line-1") },
            itemStyle: { color: token("line-1") },
            emphasis: { disabled: true },
            z: 3,
            markArea: {
              data: this.areas.map(({ name, from, until, color, words }) => [
                { name, xAxis: from, itemStyle: { color: token(color), opacity: 0.15 }, label: { show: Boolean(words), formatter: words, color: token(color), fontSize: 11, position: "insideTop" } },
                { xAxis: until },
              ]),
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

  tip(parts) {
    const at = parts[0]?.value?.[0];
    const bar = this.bars.find((one) => one.at === at);
    if (!bar) return "";
    const low = bar.low === bar.high ? "" : `<br>${format.price(bar.low, this.decimals)} – ${format.price(bar.high, this.decimals)}`;
    return `${format.dateTime(at)}<br><b>${format.price(bar.close, this.decimals)}</b>${low}`;
  }

  unmount() {
    this.resizer.disconnect();
    for (const end of this.ends) end();
    this.chart.dispose();
  }
}

// How many decimals the prices of `bars` need to be told apart, at most 12.
export function decimalsOf(bars) {
  const decimals = (value) => {
    const [digits, exponent] = String(Number(value.toPrecision(12))).split("e-");
    return (digits.split(".")[1]?.length ?? 0) + Number(exponent ?? 0);
  };
  return Math.min(bars.slice(0, 200).reduce((most, bar) => Math.max(most, decimals(bar.low), decimals(bar.high)), 0), 12);
}
