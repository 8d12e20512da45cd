import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const format = await load("format");
const THEN = Date.UTC(2025, 9, 10, 21, 15, 3, 104);
const THIN = "\u202f";

test("prices have the decimals of their product and are not rounded to two", () => {
  assert.equal(format.price(0.473, 3), "0.473");
  assert.equal(format.price(0.00000671, 8), "0.00000671");
  assert.equal(format.price(121_843.5, 2), `121${THIN}843.50`);
});

test("a time that is not of today has its date", () => {
  assert.equal(format.stamp(THEN), "2025-10-10 21:15:03");
  assert.equal(format.instant(THEN), "2025-10-10 21:15:03.104");
  assert.match(format.moment(THEN), /^2025-10-10 21:15$/);
  assert.match(format.stamp(Date.now()), /^\d\d:\d\d:\d\d$/);
});

test("a tick is a clock, at midnight a date, and the first one has the date below it", () => {
  assert.equal(format.tick(Date.UTC(2025, 9, 10, 21, 15), false), "21:15");
  assert.equal(format.tick(Date.UTC(2025, 9, 10, 21, 15, 30), true), "21:15:30\n2025-10-10");
  assert.equal(format.tick(Date.UTC(2025, 9, 11), true), "2025-10-11");
});

test("what rounds to nothing has no sign, and a minus is one", () => {
  assert.equal(format.percent(0.001), `0.00${THIN}%`);
  assert.equal(format.percent(-13.256), `−13.26${THIN}%`);
  assert.equal(format.direction(-0.001), "flat");
});

test("ages and amounts have a unit", () => {
  assert.equal(format.age(415.2 * 86_400), `415${THIN}d`);
  assert.equal(format.age(4.2), `4.2${THIN}s`);
  assert.equal(format.amount(72_083_240), `72.1${THIN}M`);
});

test("an id of three parts is shown whole", () => {
  assert.deepEqual(format.symbolParts("BTC-USD"), ["BTC", "-USD"]);
  assert.deepEqual(format.symbolParts("BIP-20DEC30-CDE"), ["BIP", "-20DEC30-CDE"]);
  assert.deepEqual(format.symbolParts("BTC/USD@kraken"), ["BTC", "/USD@kraken"]);
  assert.deepEqual(format.symbolParts("BTCUSDT@binance-aggregates"), ["BTCUSDT", "@binance-aggregates"]);
});

test("a day and an hour are named as what they are", () => {
  const start = Date.UTC(2025, 9, 10, 21);
  assert.equal(format.period(start, start + 3_600_000), "2025-10-10 21:00–22:00 UTC");
  assert.equal(format.period(Date.UTC(2025, 9, 10), Date.UTC(2025, 9, 11)), "2025-10-10 (UTC day)");
});
