import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const { chartLink, grainFor, holeOf, isoOf, msOf } = await load("links");
const AT = Date.UTC(2025, 9, 10, 21, 15);

test("an address of a time is read as it was written", () => {
  for (const ms of [AT, AT + 7000, Date.UTC(2026, 0, 1)]) assert.equal(msOf(isoOf(ms)), ms);
  assert.equal(isoOf(AT), "2025-10-10T21:15");
  assert.equal(msOf("2025-10-10"), Date.UTC(2025, 9, 10));
  assert.equal(msOf("2025-10-10T23:15+02:00"), AT);
});

test("what is no time is none", () => {
  for (const text of [null, "", "x", "2025-13-40T21:15", "2025-10-10T", "21:15", "1760130900000"]) assert.equal(msOf(text), null);
});

test("a link to a chart has time, grain and episode", () => {
  assert.equal(chartLink("BTC-USD", { atMs: AT, seconds: 40, id: "a:b" }), "/product/BTC-USD?at=2025-10-10T21:15&grain=1s#a%3Ab");
  assert.deepEqual([60, 61, 3600, 1e9].map(grainFor), ["1s", "5s", "1m", "1h"]);
});

test("the hash of Completeness names an hour, a day or a hole of a product of two or three parts", () => {
  for (const symbol of ["BTC-USD", "BIP-20DEC30-CDE", "BTC/USD@kraken"]) {
    assert.deepEqual(holeOf(`${symbol}/2025-10-10T21:15/hour`), { symbol, startMs: AT, span: "hour", first: undefined, last: undefined });
    assert.deepEqual(holeOf(`${symbol}/12-15`), { symbol, startMs: null, span: undefined, first: "12", last: "15" });
  }
  for (const text of ["", "BTC/12-15", "A-B-C-D/12-15", "BTC-USD/12", "@kraken/12-15", "BTC-USD/2025-10-10T21:15/year"]) assert.deepEqual(holeOf(text), {});
});
