// Products and hours (or days) as cells: complete, healed, absent, missing. Moved in by keyboard; a cell tells its ids.

import * as format from "./format.js";

export const STATES = [
  ["complete", "complete", "Every id is held as it came"],
  ["healed", "healed", "Ids were missed and came later, over REST; nothing is missing"],
  ["absent", "absent", "Ids are not held, as the exchange does not have them"],
  ["missing", "missing", "Ids are neither held nor proved absent"],
];
const SHOWN_MAX = 60; // products at first; the rest on demand

export class Grid {
  constructor(parent) {
    this.rows = [];
    this.isAll = false;
    this.signature = "";
    this.wrap = document.createElement("div");
    this.wrap.className = "cp-grid-wrap";
    this.table = document.createElement("table");
    this.table.className = "cp-grid";
    this.table.setAttribute("role", "grid");
    this.table.setAttribute("aria-label", "Completeness by product and time");
    this.told = document.createElement("p");
    this.told.className = "cp-told";
    this.told.setAttribute("role", "status");
    this.more = Object.assign(document.createElement("button"), { className: "cp-button", type: "button", hidden: true });
    this.more.onclick = () => {
      this.isAll = true;
      this.draw();
    };
    this.wrap.append(this.table);
    parent.append(this.wrap, this.more, this.told);
    this.table.addEventListener("pointerover", (event) => this.tell(event.target.closest("td")));
    this.table.addEventListener("focusin", (event) => this.tell(event.target.closest("td")));
    this.table.addEventListener("keydown", (event) => this.move(event));
    this.table.addEventListener("click", (event) => event.target.closest("td")?.focus());
    this.end = format.onZone(() => this.draw());
    this.tell(null);
  }

  // rows: {symbol, start, expected_ids, held_ids, healed_ids, absent_ids, missing_ids}; `stepMs`: a cell's time.
  take(rows, stepMs) {
    this.stepMs = stepMs;
    this.bySymbol = new Map();
    for (const row of rows) {
      if (!this.bySymbol.has(row.symbol)) this.bySymbol.set(row.symbol, new Map());
      this.bySymbol.get(row.symbol).set(row.start, row);
    }
    const starts = rows.map((row) => row.start);
    const last = starts.length ? starts.reduce((a, b) => Math.max(a, b)) : 0;
    const first = starts.length ? starts.reduce((a, b) => Math.min(a, b)) : 0;
    this.times = [];
    for (let time = first; time <= last; time += stepMs) this.times.push(time);
    // Where something is missing comes first.
    const missing = (cells) => [...cells.values()].reduce((all, row) => all + row.missing_ids, 0);
    this.symbols = [...this.bySymbol.keys()].sort((a, b) => missing(this.bySymbol.get(b)) - missing(this.bySymbol.get(a)) || (a < b ? -1 : 1));
    this.draw();
  }

  draw() {
    if (!this.symbols) return;
    const shown = this.isAll ? this.symbols : this.symbols.slice(0, SHOWN_MAX);
    this.more.hidden = shown.length === this.symbols.length;
    this.more.textContent = `Show all ${this.symbols.length} products`;
    const signature = JSON.stringify([shown, this.times, format.zone()]);
    if (signature !== this.signature) {
      this.signature = signature;
      this.build(shown);
    }
    shown.forEach((symbol, y) => {
      const cells = this.table.tBodies[0].rows[y].cells;
      this.times.forEach((time, x) => {
        const state = stateOf(this.bySymbol.get(symbol).get(time));
        if (cells[x + 1].dataset.cell !== state) cells[x + 1].dataset.cell = state;
      });
    });
    if (this.at) this.tell(this.at, true);
  }

  build(shown) {
    const focused = this.table.contains(document.activeElement) ? this.placeOf(document.activeElement) : null;
    this.table.dataset.dense = String(this.times.length > 40);
    const head = document.createElement("thead");
    const line = head.insertRow();
    line.append(document.createElement("th"));
    this.times.forEach((time, place) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      const text = this.heading(time, place);
      if (text) cell.append(Object.assign(document.createElement("span"), { textContent: text }));
      line.append(cell);
    });
    const body = document.createElement("tbody");
    shown.forEach((symbol, y) => {
      const row = body.insertRow();
      const name = Object.assign(document.createElement("th"), { scope: "row" });
      const link = Object.assign(document.createElement("a"), { textContent: symbol, href: `${window.path_prefix ?? ""}/product/${encodeURIComponent(symbol)}` });
      name.append(link);
      row.append(name);
      this.times.forEach((time, x) => {
        const cell = row.insertCell();
        cell.tabIndex = x === 0 && y === 0 ? 0 : -1;
        cell.dataset.symbol = symbol;
        cell.dataset.time = time;
      });
    });
    this.table.replaceChildren(head, body);
    if (focused) this.cell(focused)?.focus({ preventScroll: true });
    requestAnimationFrame(() => (this.wrap.scrollLeft = this.wrap.scrollWidth)); // the newest, once it is seen
  }

  // The first cell, each day, and every sixth hour.
  heading(time, place) {
    if (this.stepMs > 3_600_000) return place % 7 === 0 ? format.date(time).slice(5) : "";
    const clock = format.clock(time, false);
    if (clock === "00:00") return format.date(time).slice(5);
    return Number(clock.slice(0, 2)) % 6 === 0 ? clock : "";
  }

  placeOf(cell) {
    return cell.dataset.symbol ? [cell.dataset.symbol, cell.dataset.time] : null;
  }

  cell(place) {
    return place && [...this.table.querySelectorAll("td")].find((one) => one.dataset.symbol === place[0] && one.dataset.time === place[1]);
  }

  tell(cell, isAgain = false) {
    if (!cell && !isAgain) {
      this.told.textContent = "Point at a cell, or move with the arrow keys, to see its ids.";
      return;
    }
    this.at = cell;
    const row = this.bySymbol.get(cell.dataset.symbol)?.get(Number(cell.dataset.time));
    const time = Number(cell.dataset.time);
    const until = time + this.stepMs;
    const when =
      this.stepMs > 3_600_000 ? `${new Date(time).toISOString().slice(0, 10)} (UTC day)` : `${format.date(time)} ${format.clock(time, false)}–${format.clock(until, false)} ${format.zoneName(time)}`;
    const text = `${cell.dataset.symbol}, ${when}: ${wordsOf(row)}`;
    if (this.told.textContent !== text) this.told.textContent = text;
    cell.setAttribute("aria-label", text);
  }

  move(event) {
    const cell = event.target.closest("td");
    if (!cell) return;
    const rows = this.table.tBodies[0].rows;
    const y = cell.parentElement.sectionRowIndex;
    const x = cell.cellIndex;
    const last = this.times.length;
    const to = {
      ArrowLeft: [x - 1, y],
      ArrowRight: [x + 1, y],
      ArrowUp: [x, y - 1],
      ArrowDown: [x, y + 1],
      Home: [1, y],
      End: [last, y],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const next = rows[Math.min(Math.max(to[1], 0), rows.length - 1)].cells[Math.min(Math.max(to[0], 1), last)];
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  unmount() {
    this.end();
  }
}

function stateOf(row) {
  if (!row) return "none";
  if (row.missing_ids) return "missing";
  if (row.absent_ids) return "absent";
  return row.healed_ids ? "healed" : "complete";
}

function wordsOf(row) {
  if (!row) return "no trades.";
  const parts = [`${format.count(row.expected_ids)} ids expected`, `${format.count(row.held_ids)} held`];
  if (row.healed_ids) parts.push(`${format.count(row.healed_ids)} healed`);
  if (row.absent_ids) parts.push(`${format.count(row.absent_ids)} absent`);
  parts.push(row.missing_ids ? `${format.count(row.missing_ids)} missing` : "none missing");
  return `${parts.join(", ")}.`;
}
