// Candles in the order of time.

import { toObjects } from "./api.js";

// Candles as objects, with derived values that are drawn; `time` is in seconds since 1970.
export function candlesOf(message) {
  return toObjects(message).map((row) => {
    const sell_volume = row.volume - row.buy_volume;
    const [vwap, net] = row.volume > 0 ? [row.notional / row.volume, (100 * (row.buy_volume - sell_volume)) / row.volume] : [null, null];
    return { ...row, vwap, sell_volume, net };
  });
}

export class Candles {
  constructor(rows = []) {
    this.rows = rows;
    this.times = rows.map((row) => row.time);
  }

  get length() {
    return this.times.length;
  }

  get first() {
    return this.times[0];
  }

  get last() {
    return this.times[this.times.length - 1];
  }

  // Adds rows, which are in the order of time; a row replaces the one with the same time.
  put(rows) {
    if (rows.length && this.length && rows[rows.length - 1].time < this.first) {
      this.rows = [...rows, ...this.rows];
      this.times = this.rows.map((row) => row.time);
      return;
    }
    for (const row of rows) {
      const place = this.length && row.time <= this.last ? this.placeOf(row.time) : this.length;
      const isThere = this.times[place] === row.time ? 1 : 0;
      this.rows.splice(place, isThere, row);
      this.times.splice(place, isThere, row.time);
    }
  }

  cut(start, end) {
    this.rows = this.rows.slice(start, end);
    this.times = this.times.slice(start, end);
  }

  // The index of the first candle at or after `time`.
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

  // The index of the candle that contains `time`, or of the one before it; -1 before the first.
  within(time) {
    const place = this.placeOf(time);
    return this.times[place] === time ? place : place - 1;
  }
}
