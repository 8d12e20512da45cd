// A table whose rows change all the time: sorted, filtered, moved in by keyboard; only what changed is drawn.

import * as format from "./format.js";
import { onZone } from "./format.js";

const SORT_EVERY_MS = 1000; // rows that jump more often can't be read

// How a kind of column is drawn. `draw` puts a value into a cell; text by default.
const KINDS = {
  text: { text: (value) => value ?? format.NONE },
  symbol: { text: (value) => value, draw: drawSymbol },
  price: { right: true, text: (value, row, column) => format.price(value, column.decimals ?? row.decimals), draw: drawPrice },
  percent: { right: true, text: (value, _row, column) => format.percent(value, column.digits), draw: drawPercent },
  amount: { right: true, text: (value) => format.amount(value) },
  count: { right: true, text: (value) => format.count(value) },
  share: { right: true, text: (value) => format.share(value), draw: drawShare },
  range: { text: (value) => (value ? value.map((one) => one.toPrecision(6)).join() : format.NONE), draw: drawRange },
  spark: { text: (value) => (value ? value.join() : ""), draw: drawSpark },
  instant: { text: (value) => (format.known(value) ? `${format.clock(value)}.${String(Math.floor(value % 1000)).padStart(3, "0")}` : format.NONE), draw: drawTime },
  time: { text: (value) => (format.known(value) ? format.moment(value) : format.NONE), draw: drawTime },
  seconds: { right: true, text: (value) => format.age(value) },
  badge: { text: (value) => value ?? "", draw: drawBadge },
};

export class Table {
  // columns: [{key, label, kind, title, hide, decimals, digits, sortable}]; options: {keyOf, href, sort: {key, down},
  // storage, label, empty}. `hide`: "phone" or "tablet", the widths at which a column is left out.
  constructor(parent, columns, options) {
    this.columns = columns;
    this.options = options;
    this.rows = new Map(); // key → {row, tr, cells, texts}
    this.filter = "";
    this.matches = () => true;
    this.sort = this.storedSort() ?? options.sort ?? { key: columns[0].key, down: false };
    this.sortedAt = 0;
    this.build(parent);
    this.ends = [onZone(() => this.redraw())];
    this.timer = setInterval(() => this.arrange(), SORT_EVERY_MS);
  }

  build(parent) {
    this.wrap = document.createElement("div");
    this.wrap.className = "cp-table-wrap";
    this.table = document.createElement("table");
    this.table.className = "cp-table";
    this.table.setAttribute("aria-label", this.options.label ?? "");
    const head = this.table.createTHead().insertRow();
    for (const column of this.columns) head.append(this.heading(column));
    this.body = this.table.createTBody();
    this.note = document.createElement("p");
    this.note.className = "cp-empty";
    this.note.hidden = true;
    this.wrap.append(this.table, this.note);
    parent.append(this.wrap);
    this.body.addEventListener("click", (event) => this.open(event));
    this.body.addEventListener("keydown", (event) => this.move(event));
    this.body.addEventListener("pointerenter", () => (this.held = true));
    this.body.addEventListener("pointerleave", () => (this.held = false));
    this.showSort();
  }

  heading(column) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.className = classOf(column);
    cell.dataset.key = column.key;
    if (column.sortable === false) {
      cell.textContent = column.label;
    } else {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.label;
      if (column.title) button.title = column.title;
      button.onclick = () => this.sortBy(column.key);
      cell.append(button);
    }
    return cell;
  }

  // Puts rows in, or in the place of those with their keys.
  update(rows) {
    for (const row of rows) this.put(row);
    if (!this.sortedAt || this.rows.size !== this.arranged) this.arrange(true);
  }

  // These rows and no others.
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
      entry = this.made(key);
      this.rows.set(key, entry);
    }
    entry.row = row;
    this.columns.forEach((column, place) => {
      const kind = KINDS[column.kind ?? "text"];
      const value = row[column.key];
      const text = kind.text(value, row, column);
      if (text === entry.texts[place]) return;
      entry.texts[place] = text;
      if (kind.draw) kind.draw(entry.cells[place], value, text, row, column, entry);
      else entry.cells[place].textContent = text;
      entry.values[place] = value;
    });
  }

  made(key) {
    const tr = document.createElement("tr");
    tr.dataset.key = key;
    if (this.options.href) tr.tabIndex = -1;
    const cells = this.columns.map((column) => {
      const cell = tr.insertCell();
      cell.className = classOf(column);
      cell.dataset.key = column.key;
      return cell;
    });
    return { tr, cells, texts: [], values: [], row: null, href: this.options.href };
  }

  redraw() {
    for (const entry of this.rows.values()) {
      entry.texts = [];
      this.put(entry.row);
    }
  }

  setFilter(text) {
    this.filter = text.trim().toUpperCase();
    this.arrange(true);
  }

  // Only rows of which `matches(row)` is true.
  setMatch(matches) {
    this.matches = matches;
    this.arrange(true);
  }

  sortBy(key) {
    const column = this.columns.find((one) => one.key === key);
    const isNumber = !["text", "symbol", "badge"].includes(column.kind ?? "text");
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : isNumber };
    try {
      if (this.options.storage) localStorage.setItem(this.options.storage, JSON.stringify(this.sort));
    } catch {
      // it holds for this page
    }
    this.showSort();
    this.arrange(true);
  }

  storedSort() {
    try {
      const found = JSON.parse(localStorage.getItem(this.options.storage ?? ""));
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

  // Brings the rows into order and hides those that don't match. While the pointer is over them they stay.
  arrange(isAsked = false) {
    if (!isAsked && (this.held || document.hidden)) return;
    this.sortedAt = Date.now();
    this.arranged = this.rows.size;
    const place = this.columns.findIndex((column) => column.key === this.sort.key);
    const sign = this.sort.down ? -1 : 1;
    const shown = [...this.rows.entries()]
      .filter(([, { row }]) => this.matches(row) && (!this.filter || this.isFound(row)))
      .map(([key, entry]) => ({ key, entry, value: this.sortValue(entry.row, this.columns[place]) }))
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
    this.shown = order.length;
    this.note.hidden = order.length > 0;
    if (!order.length) this.note.textContent = this.rows.size ? "Nothing matches." : (this.options.empty?.() ?? "");
    this.table.hidden = !this.rows.size;
    this.options.onArranged?.(order.length, this.rows.size);
  }

  isFound(row) {
    return this.columns.some((column) => {
      const isText = ["text", "symbol", "badge"].includes(column.kind ?? "text");
      return isText && String(row[column.key] ?? "").toUpperCase().includes(this.filter);
    });
  }

  sortValue(row, column) {
    if (column.sortKey) return row[column.sortKey];
    return column.order ? column.order(row[column.key]) : row[column.key];
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

function classOf(column) {
  const kind = KINDS[column.kind ?? "text"];
  return [kind.right ? "cp-right" : "", `cp-kind-${column.kind ?? "text"}`, column.hide ? `cp-hide-${column.hide}` : ""]
    .filter(Boolean)
    .join(" ");
}

// What is not known comes last, whatever the order.
function compare(a, b, sign) {
  const aKnown = format.known(a);
  const bKnown = format.known(b);
  if (!aKnown || !bKnown) return aKnown === bKnown ? 0 : aKnown ? -1 : 1;
  return a < b ? -sign : a > b ? sign : 0;
}

function drawSymbol(cell, value, _text, row, _column, entry) {
  const [base, quote] = value.split("-");
  let link = cell.firstChild;
  if (!link) {
    link = document.createElement(entry.href ? "a" : "span");
    if (entry.href) {
      link.href = entry.href(row);
      link.tabIndex = -1; // the row is what is moved to
    }
    cell.append(link);
  }
  link.replaceChildren(base, Object.assign(document.createElement("span"), { textContent: `-${quote ?? ""}` }));
}

function drawPrice(cell, value, text, _row, column, entry) {
  const place = entry.cells.indexOf(cell);
  const before = entry.values[place];
  const leading = value < 0.001 ? text.match(/^0\.0+/) : null; // of tiny prices the digits that count stand out
  if (leading) {
    const faint = Object.assign(document.createElement("span"), { className: "cp-faint", textContent: leading[0] });
    cell.replaceChildren(faint, text.slice(leading[0].length));
  } else {
    cell.textContent = text;
  }
  if (!column.flash || !format.known(before) || before === value) return;
  cell.dataset.moved = value > before ? "up" : "down";
  clearTimeout(cell.quiet);
  cell.quiet = setTimeout(() => delete cell.dataset.moved, 700);
}

function drawPercent(cell, value, text, _row, column) {
  cell.textContent = text;
  cell.dataset.direction = format.direction(value, column.digits);
}

function drawShare(cell, value, text) {
  let bar = cell.querySelector("i");
  if (!bar) {
    cell.replaceChildren(document.createElement("span"), document.createElement("i"));
    bar = cell.querySelector("i");
  }
  cell.firstChild.textContent = text;
  bar.hidden = !format.known(value);
  bar.style.setProperty("--share", `${value ?? 0}%`);
}

function drawRange(cell, value) {
  cell.textContent = "";
  if (!value || !(value[1] > value[0])) return;
  const [low, high, now] = value;
  const mark = document.createElement("i");
  mark.style.setProperty("--at", `${Math.min(Math.max((100 * (now - low)) / (high - low), 0), 100)}%`);
  cell.append(mark);
}

const SPARK_WIDTH = 96;
const SPARK_HEIGHT = 22;

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
  let drawing = cell.firstChild;
  if (!drawing?.dataset) {
    cell.innerHTML = `<svg viewBox="0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}" aria-hidden="true" data-direction=""><path/></svg>`;
    drawing = cell.firstChild;
  }
  const first = prices[0];
  const last = prices[prices.length - 1];
  drawing.dataset.direction = last > first ? "up" : last < first ? "down" : "flat";
  drawing.firstChild.setAttribute("d", `M${path}`);
}

function drawTime(cell, value, text) {
  cell.textContent = text;
  if (format.known(value)) cell.title = format.dateTime(value);
}

function drawBadge(cell, value, text) {
  if (!text) {
    cell.textContent = "";
    return;
  }
  const badge = Object.assign(document.createElement("span"), { className: "cp-tag", textContent: words(text) });
  badge.dataset.value = value;
  cell.replaceChildren(badge);
}

// FLASH_CRASH → Flash crash
export function words(text) {
  const spaced = String(text).replaceAll("_", " ").toLowerCase();
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

// A table of rows that the server hands over: options {columns, key, href, sort, label, empty, rows, filter}.
// `href` is a path in which {name} stands for a row's value.
export function mount(element, options) {
  const table = new Table(element, options.columns, {
    ...options,
    keyOf: (row) => String(row[options.key]),
    href: options.href && ((row) => options.href.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(row[name]))),
    empty: () => options.empty ?? "Nothing here.",
  });
  table.replace(options.rows ?? []);
  return {
    replace: (rows) => table.replace(rows),
    update: (rows) => table.update(rows),
    filter: (text) => table.setFilter(text),
    unmount: () => table.unmount(),
  };
}
