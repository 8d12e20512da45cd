// Products and hours (or days) as cells: complete, healed, absent, missing. Keyboard navigation; a cell shows its counts.

import { h, setText } from "./dom.js";
import * as format from "./format.js";
import { HOUR_MS, productLink } from "./links.js";

const STATES = {
  complete: "Every id is held as it came",
  healed: "Ids were missed and came later, over REST; nothing is missing",
  absent: "Ids are not held, as the exchange does not have them",
  missing: "Ids are neither held nor proved absent",
};
const PRODUCTS_MAX = 60; // shown at first; the others on demand

export class Heatmap {
  // `onOpen(symbol, startMs, stepMs)` is called when a cell is clicked, or on Enter.
  constructor(parent, { onOpen }) {
    Object.assign(this, { onOpen, isAll: false, signature: "" });
    this.table = h("table", { className: "cp-grid", role: "grid", "aria-label": "Completeness by product and time" });
    this.wrap = h("div", { className: "cp-grid-wrap" }, this.table);
    this.note = h("p", { className: "cp-told", role: "status" });
    this.more = h("button", { className: "cp-button", type: "button", hidden: true });
    this.more.onclick = () => {
      this.isAll = true;
      this.draw();
    };
    parent.append(this.wrap, this.more, this.note);
    this.table.addEventListener("pointerover", (event) => this.describe(event.target.closest("td")));
    this.table.addEventListener("focusin", (event) => this.describe(event.target.closest("td")));
    this.table.addEventListener("keydown", (event) => this.move(event));
    this.table.addEventListener("click", (event) => {
      const cell = event.target.closest("td");
      cell?.focus();
      if (cell) this.open(cell);
    });
    this.end = format.onZone(() => this.draw());
    this.describe(null);
  }

  // rows: {symbol, start, expected_ids, held_ids, healed_ids, absent_ids, missing_ids}; `stepMs`: duration of a cell.
  show(rows, stepMs) {
    this.stepMs = stepMs;
    this.bySymbol = new Map();
    for (const row of rows) {
      if (!this.bySymbol.has(row.symbol)) this.bySymbol.set(row.symbol, new Map());
      this.bySymbol.get(row.symbol).set(row.start, row);
    }
    const starts = rows.map((row) => row.start).sort((a, b) => a - b);
    this.times = [];
    for (let time = starts[0]; time <= starts[starts.length - 1]; time += stepMs) this.times.push(time);
    // Products with missing ids come first.
    const missing = (symbol) => [...this.bySymbol.get(symbol).values()].reduce((all, row) => all + row.missing_ids, 0);
    this.symbols = [...this.bySymbol.keys()].sort((a, b) => missing(b) - missing(a) || (a < b ? -1 : 1));
    this.draw();
  }

  draw() {
    if (!this.symbols) return;
    const shown = this.isAll ? this.symbols : this.symbols.slice(0, PRODUCTS_MAX);
    this.more.hidden = shown.length === this.symbols.length;
    this.more.textContent = `Show all ${this.symbols.length} products`;
    const signature = JSON.stringify([shown, this.times, format.zone()]);
    if (signature !== this.signature) {
      this.signature = signature;
      const letters = Math.max(0, ...shown.map((symbol) => symbol.length)); // of some 6.6 px
      this.table.style.setProperty("--cp-names", `${Math.min(Math.max(20 + 6.6 * letters, 108), 190)}px`);
      this.build(shown);
    }
    shown.forEach((symbol, y) => {
      const cells = this.table.tBodies[0].rows[y].cells;
      this.times.forEach((time, x) => {
        const row = this.bySymbol.get(symbol).get(time);
        const state = row ? stateOf(row) : "none";
        if (cells[x + 1].dataset.cell !== state) cells[x + 1].dataset.cell = state;
      });
    });
    if (this.described) this.describe(this.described);
  }

  build(shown) {
    const focused = this.table.contains(document.activeElement) ? document.activeElement.dataset : {};
    const headings = this.times.map((time, place) => {
      const text = this.heading(time, place);
      return h("th", { scope: "col" }, ...(text ? [h("span", { textContent: text })] : []));
    });
    const lines = shown.map((symbol, y) => {
      const name = h("th", { scope: "row" }, h("a", { textContent: symbol, href: productLink(symbol) }));
      const cells = this.times.map((time, x) => h("td", { tabIndex: x === 0 && y === 0 ? 0 : -1, "data-symbol": symbol, "data-time": time }));
      return h("tr", {}, name, ...cells);
    });
    this.table.replaceChildren(h("thead", {}, h("tr", {}, h("th"), ...headings)), h("tbody", {}, ...lines));
    if (focused.symbol) this.table.querySelector(`td[data-symbol="${focused.symbol}"][data-time="${focused.time}"]`)?.focus({ preventScroll: true });
    requestAnimationFrame(() => (this.wrap.scrollLeft = this.wrap.scrollWidth)); // to the newest cell, once it is visible
  }

  // A heading above the first cell, each day, and every sixth hour.
  heading(time, place) {
    const day = format.date(time).slice(5);
    if (this.stepMs > HOUR_MS) return place % 7 === 0 ? day : "";
    const clock = format.clock(time, false);
    const hour = Number(clock.slice(0, 2));
    if (clock === "00:00" || (place === 0 && hour % 6 < 4)) return day;
    return hour % 6 === 0 ? clock : "";
  }

  // Shows the counts of a cell; without a cell, how to see them.
  describe(cell) {
    if (!cell) {
      this.note.textContent = "Point at a cell, or move with the arrow keys, to see its counts; click it, or press Enter, for its ids and what helps.";
      return;
    }
    this.described = cell;
    const time = Number(cell.dataset.time);
    const row = this.bySymbol.get(cell.dataset.symbol)?.get(time);
    const text = `${cell.dataset.symbol}, ${format.period(time, time + this.stepMs)}: ${row ? countsText(row) : "no trades."}`;
    setText(this.note, text);
    cell.setAttribute("aria-label", text);
  }

  move(event) {
    const cell = event.target.closest("td");
    if (!cell) return;
    const rows = this.table.tBodies[0].rows;
    const y = cell.parentElement.sectionRowIndex;
    const x = cell.cellIndex;
    const last = this.times.length;
    const to = { ArrowLeft: [x - 1, y], ArrowRight: [x + 1, y], ArrowUp: [x, y - 1], ArrowDown: [x, y + 1], Home: [1, y], End: [last, y] }[event.key];
    const isOpening = event.key === "Enter" || event.key === " ";
    if (!to && !isOpening) return;
    event.preventDefault();
    if (isOpening) {
      this.open(cell);
      return;
    }
    const next = rows[Math.min(Math.max(to[1], 0), rows.length - 1)].cells[Math.min(Math.max(to[0], 1), last)];
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  open(cell) {
    this.onOpen(cell.dataset.symbol, Number(cell.dataset.time), this.stepMs);
  }

  unmount() {
    this.end();
  }
}

// The legend of the states, for the head of a panel.
export function legend(parent) {
  const items = Object.entries(STATES).map(([name, title]) => h("span", { title }, h("i", { "data-cell": name }), name));
  parent.append(h("span", { className: "cp-states" }, ...items));
}

export function stateOf(row) {
  return row.missing_ids ? "missing" : row.absent_ids ? "absent" : row.healed_ids ? "healed" : "complete";
}

export function countsText(row) {
  const parts = [`${format.count(row.expected_ids)} ids expected`, `${format.count(row.held_ids)} held`];
  if (row.healed_ids) parts.push(`${format.count(row.healed_ids)} healed`);
  if (row.absent_ids) parts.push(`${format.count(row.absent_ids)} absent`);
  parts.push(row.missing_ids ? `${format.count(row.missing_ids)} missing` : "none missing");
  return `${parts.join(", ")}.`;
}
