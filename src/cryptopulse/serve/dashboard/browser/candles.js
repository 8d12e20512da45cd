// The candles of a chart in the order of time, with what ECharts wants of them.

export const KEPT_MAX = 4000; // more than the server sends, as a page may stay open for long

export class Candles {
  constructor() {
    this.clear();
  }

  clear() {
    this.times = []; // start, in seconds since 1970
    this.rows = [];
  }

  // Puts rows in; `columns` names their values, the first is the time. Returns how many were cut off at the beginning.
  take(columns, rows, isWhole) {
    if (isWhole) this.clear();
    for (const values of rows) {
      const row = {};
      columns.forEach((name, place) => (row[name] = values[place]));
      row.vwap = row.volume > 0 ? row.notional / row.volume : null;
      row.sell_volume = row.volume - row.buy_volume;
      row.net = row.volume > 0 ? (100 * (row.buy_volume - row.sell_volume)) / row.volume : null;
      this.put(row);
    }
    const cut = Math.max(this.times.length - KEPT_MAX, 0);
    this.times.splice(0, cut);
    this.rows.splice(0, cut);
    return cut;
  }

  put(row) {
    const last = this.times[this.times.length - 1];
    if (last === undefined || row.time > last) {
      this.times.push(row.time);
      this.rows.push(row);
      return;
    }
    const place = this.placeOf(row.time);
    if (this.times[place] === row.time) {
      this.rows[place] = row;
    } else {
      this.times.splice(place, 0, row.time);
      this.rows.splice(place, 0, row);
    }
  }

  // The place of the first candle at or after `time`.
  placeOf(time) {
    let low = 0;
    let high = this.times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // The place of the candle that `time` lies in, or the one before it.
  within(time) {
    const place = this.placeOf(time);
    return this.times[place] === time ? place : place - 1;
  }

  get length() {
    return this.times.length;
  }
}
