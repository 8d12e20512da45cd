// A table for rows that change all the time: sorting, filter, keyboard navigation; draws only what has changed.

import { h, onKey, readStorage, setNote, writeStorage } from "./dom.js";
import * as format from "./format.js";
import { tag } from "./panels.js";

const SORT_EVERY_MS = 1000; // rows that move more often can't be read

// How a kind of column is drawn. `draw` puts a value into a cell; text by default.
const TEXTS = ["text", "symbol", "badge"]; // searched by the filter; sorted ascending first
const KINDS = {
  text: { text: (value) => value ?? format.NONE },
  symbol: { text: (value) => value, draw: drawSymbol },
  price: { right: true, text: (value, row) => format.price(value, row.decimals), draw: drawPrice },
  percent: { right: true, text: (value) => format.percent(value), draw: (cell, value, text) => drawDirected(cell, text, format.direction(value)) },
  measured: { right: true, text: (value) => value, draw: (cell, _value, text, { row }) => drawDirected(cell, text, row.direction) },
  amount: { right: true, text: (value) => format.amount(value) },
  count: { right: true, text: (value) => format.count(value) },
  share: { right: true, text: (value) => format.share(value), draw: drawShare },
  range: { text: (value) => (value ? value.map((one) => one.toPrecision(6)).join() : format.NONE), draw: drawRange },
  spark: { text: (value) => (value ? value.join() : ""), draw: drawSpark },
  instant: { text: (value) => (format.known(value) ? format.instant(value) : format.NONE), draw: drawTime },
  time: { text: (value) => (format.known(value) ? format.moment(value) : format.NONE), draw: drawTime },
  seconds: { right: true, text: (value) => format.age(value) },
  badge: { text: (value) => value ?? "", draw: (cell, value, text) => cell.replaceChildren(...(text ? [tag(value)] : [])) },
};

export class Table {
  // columns: [{key, label, kind, title, hide, sortKey, sortable, flash}]; options: {keyOf, href, sort: {key, down}, storage,
  // label, empty, onArranged}. `hide`: "small", "phone" or "tablet", the widths at which a column is hidden.
  constructor(parent, columns, options) {
    Object.assign(this, { options, columns: columns.map((column) => ({ kind: "text", ...column })) });
    this.rows = new Map(); // key → {row, tr, cells, texts}
    this.filter = "";
    this.sort = this.storedSort() ?? options.sort ?? { key: columns[0].key, down: false };
    this.sortedAt = 0;
    this.table = h("table", { className: "cp-table", "aria-label": options.label });
    const head = this.table.createTHead().insertRow();
    for (const { key, kind, label, title, hide, sortable = true } of this.columns) {
      const content = sortable ? h("button", { type: "button", textContent: label, title, onclick: () => this.sortBy(key) }) : label;
      head.append(h("th", { scope: "col", className: classOf(kind, hide), "data-key": key }, content));
    }
    this.body = this.table.createTBody();
    this.note = h("p", { className: "cp-empty", hidden: true });
    this.wrap = h("div", { className: "cp-table-wrap" }, this.table, this.note);
    parent.append(this.wrap);
    this.body.addEventListener("click", (event) => this.open(event));
    this.body.addEventListener("keydown", (event) => this.move(event));
    this.body.addEventListener("pointerenter", () => (this.isHovered = true));
    this.body.addEventListener("pointerleave", () => (this.isHovered = false));
    this.showSort();
    const redraw = () => {
      for (const entry of this.rows.values()) {
        entry.texts = [];
        this.put(entry.row);
      }
    };
    this.ends = [format.onZone(redraw)];
    this.timer = setInterval(() => this.arrange(), SORT_EVERY_MS);
  }

  // Adds rows, or replaces those with the same keys.
  update(rows) {
    for (const row of rows) this.put(row);
    if (!this.sortedAt || this.rows.size !== this.arranged) this.arrange(true);
  }

  // Replaces all rows by these.
  replace(rows) {
    const keys = new Set(rows.map((row) => this.options.keyOf(row)));
    for (const [key, entry] of this.rows) {
      if (keys.has(key)) continue;
      entry.tr.remove();
      this.rows.delete(key);
    }
    this.update(rows);
    this.arrange(true);
  }

  put(row) {
    const key = this.options.keyOf(row);
    let entry = this.rows.get(key);
    if (!entry) {
      const cells = this.columns.map((column) => h("td", { className: classOf(column.kind, column.hide), "data-key": column.key }));
      const tr = h("tr", { "data-key": key, tabIndex: this.options.href ? -1 : undefined }, ...cells);
      entry = { tr, cells, texts: [], values: [] };
      this.rows.set(key, entry);
    }
    entry.row = row;
    this.columns.forEach(({ key: name, kind, flash }, place) => {
      const { text: textOf, draw } = KINDS[kind];
      const value = row[name];
      const text = textOf(value, row);
      if (text === entry.texts[place]) return;
      const before = flash ? entry.values[place] : null;
      entry.texts[place] = text;
      entry.values[place] = value;
      if (draw) draw(entry.cells[place], value, text, { before, row, href: this.options.href?.(row) });
      else entry.cells[place].textContent = text;
    });
  }

  setFilter(text) {
    this.filter = text.trim().toUpperCase();
    this.arrange(true);
  }

  // Makes `input` the filter's field: the key `f` focuses it, Enter and arrow down go to the rows, and Esc clears it.
  // `changed()` is called when it was cleared.
  filteredBy(input, changed) {
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        input.value = "";
        changed();
        input.blur();
      } else if (event.key === "ArrowDown" || event.key === "Enter") {
        event.preventDefault();
        this.body.rows[0]?.focus();
      }
    });
    const end = onKey((event) => {
      if (event.key !== "f") return;
      event.preventDefault();
      input.focus();
    });
    this.ends.push(end);
  }

  sortBy(key) {
    const column = this.columns.find((one) => one.key === key);
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : !TEXTS.includes(column.kind) };
    if (this.options.storage) writeStorage(this.options.storage, JSON.stringify(this.sort));
    this.showSort();
    this.arrange(true);
  }

  storedSort() {
    try {
      const found = JSON.parse(readStorage(this.options.storage ?? ""));
      return this.columns.some((column) => column.key === found?.key) ? found : null;
    } catch {
      return null;
    }
  }

  showSort() {
    for (const cell of this.table.tHead.rows[0].cells) {
      if (cell.dataset.key === this.sort.key) cell.ariaSort = this.sort.down ? "descending" : "ascending";
      else cell.removeAttribute("aria-sort");
    }
  }

  // Sorts the rows and hides those that don't match. Unless forced, waits while the pointer is over them.
  arrange(isForced = false) {
    if (!isForced && (this.isHovered || document.hidden)) return;
    this.sortedAt = Date.now();
    this.arranged = this.rows.size;
    const { key: sortedKey, sortKey = sortedKey } = this.columns.find((column) => column.key === this.sort.key);
    const sign = this.sort.down ? -1 : 1;
    const shown = [...this.rows.entries()]
      .filter(([, { row }]) => !this.filter || this.isFound(row))
      .map(([key, entry]) => ({ key, entry, value: entry.row[sortKey] }))
      .sort((a, b) => compare(a.value, b.value, sign) || compare(a.key, b.key, 1));
    const order = shown.map(({ entry }) => entry.tr);
    const now = this.body.rows;
    if (order.length !== now.length || order.some((tr, at) => tr !== now[at])) {
      const focused = document.activeElement?.closest?.("tr");
      this.body.replaceChildren(...order);
      if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    }
    order.forEach((tr, at) => {
      if (this.options.href) tr.tabIndex = at === 0 ? 0 : -1;
    });
    const emptyText = this.rows.size ? "Nothing matches." : (this.options.empty?.() ?? "");
    setNote(this.note, order.length ? "" : emptyText);
    this.table.hidden = !this.rows.size;
    this.options.onArranged?.(order.length, this.rows.size);
  }

  isFound(row) {
    return this.columns.some(({ key, kind }) => TEXTS.includes(kind) && String(row[key] ?? "").toUpperCase().includes(this.filter));
  }

  open(event) {
    const tr = event.target.closest("tr");
    if (!tr || !this.options.href || event.target.closest("a, button")) return;
    if (String(getSelection())) return; // text was being selected
    const href = this.options.href(this.rows.get(tr.dataset.key).row);
    if (event.ctrlKey || event.metaKey) window.open(href);
    else location.href = href;
  }

  move(event) {
    const tr = event.target.closest("tr");
    if (!tr) return;
    const rows = this.body.rows;
    const at = [...rows].indexOf(tr);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      rows[Math.min(Math.max(to, 0), rows.length - 1)]?.focus();
    } else if (event.key === "Enter" && event.target === tr && this.options.href) {
      location.href = this.options.href(this.rows.get(tr.dataset.key).row);
    }
  }

  unmount() {
    clearInterval(this.timer);
    for (const end of this.ends) end();
  }
}

function classOf(kind, hide) {
  return [KINDS[kind].right && "cp-right", `cp-kind-${kind}`, hide && `cp-hide-${hide}`].filter(Boolean).join(" ");
}

// Unknown values come last in either order.
function compare(a, b, sign) {
  const [aKnown, bKnown] = [format.known(a), format.known(b)];
  if (!aKnown || !bKnown) return aKnown === bKnown ? 0 : aKnown ? -1 : 1;
  return a < b ? -sign : a > b ? sign : 0;
}

function drawSymbol(cell, value, _text, { href }) {
  const [base, rest] = format.symbolParts(value);
  const properties = href ? { href, tabIndex: -1 } : {}; // the row gets the focus instead
  cell.replaceChildren(h(href ? "a" : "span", properties, base, h("span", { textContent: rest })));
}

function drawPrice(cell, value, text, { before }) {
  const leading = (value < 0.001 && text.match(/^0\.0+/)?.[0]) || ""; // leading zeros of tiny prices are faint, so that the other digits stand out
  cell.replaceChildren(...(leading ? [h("span", { className: "cp-faint", textContent: leading })] : []), text.slice(leading.length));
  if (!format.known(before) || before === value) return;
  cell.dataset.moved = value > before ? "up" : "down";
  clearTimeout(cell.quiet);
  cell.quiet = setTimeout(() => delete cell.dataset.moved, 700);
}

function drawDirected(cell, text, direction) {
  cell.textContent = text;
  cell.dataset.direction = direction;
}

function drawShare(cell, value, text) {
  const bar = h("i", { hidden: !format.known(value) });
  bar.style.setProperty("--share", `${value ?? 0}%`);
  cell.replaceChildren(h("span", { textContent: text }), bar);
}

function drawRange(cell, value) {
  cell.textContent = "";
  if (!value || !(value[1] > value[0])) return;
  const [low, high, now] = value;
  const mark = h("i");
  mark.style.setProperty("--at", `${Math.min(Math.max((100 * (now - low)) / (high - low), 0), 100)}%`);
  cell.append(mark);
}

const [SPARK_WIDTH, SPARK_HEIGHT] = [96, 22];

function drawSpark(cell, value) {
  const points = (value ?? []).map((one, at) => [at, one]).filter(([, one]) => format.known(one));
  if (points.length < 2) {
    cell.textContent = "";
    return;
  }
  const prices = points.map(([, one]) => one);
  const low = Math.min(...prices);
  const span = Math.max(...prices) - low || 1;
  const step = SPARK_WIDTH / (value.length - 1);
  const path = points
    .map(([at, one]) => `${(at * step).toFixed(1)} ${(SPARK_HEIGHT - 1.5 - ((one - low) / span) * (SPARK_HEIGHT - 3)).toFixed(1)}`)
    .join("L");
  const change = prices[prices.length - 1] - prices[0];
  if (!cell.firstElementChild) cell.innerHTML = `<svg viewBox="0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}" aria-hidden="true"><path/></svg>`;
  const drawing = cell.firstElementChild;
  drawing.dataset.direction = change > 0 ? "up" : change < 0 ? "down" : "flat";
  drawing.firstChild.setAttribute("d", `M${path}`);
}

function drawTime(cell, value, text) {
  cell.textContent = text;
  if (format.known(value)) cell.title = format.dateTime(value);
}
