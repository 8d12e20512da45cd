import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const { Candles, candlesOf } = await load("candles");
const rows = (...times) => times.map((time) => ({ time }));

test("candles come in any order and stand in that of time, each once", () => {
  const candles = new Candles();
  candles.put(rows(5, 6, 9));
  candles.put([{ time: 6, close: 2 }]);
  candles.put(rows(7));
  candles.put(rows(1, 2));
  candles.put(rows(10));
  assert.deepEqual(candles.times, [1, 2, 5, 6, 7, 9, 10]);
  assert.deepEqual(candles.rows.map((row) => row.time), candles.times);
  assert.equal(candles.rows[3].close, 2);
});

test("a time lies in the candle that began before it", () => {
  const candles = new Candles(rows(10, 20, 30));
  assert.deepEqual([5, 10, 19, 20, 35].map((time) => candles.within(time)), [-1, 0, 0, 1, 2]);
  assert.deepEqual([5, 10, 11, 31].map((time) => candles.placeOf(time)), [0, 0, 1, 3]);
});

test("what a candle is drawn with is made of what the server tells", () => {
  const [candle, empty] = candlesOf({ columns: ["time", "volume", "notional", "buy_volume"], rows: [[7, 4, 40, 1], [8, 0, 0, 0]] });
  assert.deepEqual(candle, { time: 7, volume: 4, notional: 40, buy_volume: 1, vwap: 10, sell_volume: 3, net: -50 });
  assert.deepEqual([empty.vwap, empty.net], [null, null]);
});
