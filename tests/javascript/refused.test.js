import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const { refusedIds, refusedWithin } = await load("refused");

test("ids of messages in quarantine are read from whatever they hold", () => {
  const messages = [
    { partition_key: "BTC-USD", body: '{"type":"match","trade_id":12,"price":"-1"}' },
    { partition_key: "", body: '{"product_id": "ETH-USD", "trades":[{"trade_id": "7"},{"trade_id":"9"' },
    { partition_key: "BTC-USD", body: '{"trade_id":"<img src=x>"' },
    { partition_key: "", body: "no JSON at all" },
  ];
  const found = refusedIds(messages);
  assert.deepEqual([...found.keys()], ["BTC-USD", "ETH-USD"]);
  assert.equal(found.get("BTC-USD").get(12), messages[0]);
  assert.deepEqual([...found.get("ETH-USD").keys()], [7, 9]);
});

test("those of a hole are chosen, in order", () => {
  const ids = new Map([[9, {}], [4, {}], [7, {}]]);
  assert.deepEqual(refusedWithin(ids, 5, 9), [7, 9]);
  assert.deepEqual(refusedWithin(undefined, 5, 9), []);
});
