import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const { colorOf, directionOf, measured, story, strength, thresholdText } = await load("alert_words");
const THIN = "\u202f";

function episode(type, percent, threshold) {
  const prices = { start_price: "100", end_price: "99.5", window_start: 0, window_end: 60e6 };
  return { alert_type: type, price_change_pct: percent, threshold_pct: String(threshold), lookback_s: 60, ...prices };
}

test("what was measured is said in the units of its type", () => {
  assert.equal(measured(episode("FLASH_CRASH", -1.014, 1)), `−1.01${THIN}%`);
  assert.equal(measured(episode("VOLUME_SURGE", 734, 500)), "7.3×");
  assert.equal(measured(episode("SELL_IMBALANCE", -85, 60), 1), `−85.0${THIN}%`);
  assert.equal(measured(episode("VOLATILITY", 1.2, 1)), `1.20${THIN}%`);
});

test("only what has a direction is drawn as up or down", () => {
  assert.deepEqual(["FLASH_CRASH", "BUY_IMBALANCE", "VOLATILITY"].map((type) => directionOf(episode(type, 5, 1))), ["down", "up", "flat"]);
  assert.equal(colorOf(episode("VOLUME_SURGE", 734, 500)), "warn");
});

test("episodes of different types are compared by their thresholds", () => {
  assert.ok(strength(episode("FLASH_CRASH", -4, 1)) > strength(episode("VOLUME_SURGE", 734, 500)));
});

test("a sentence says what happened, and the rule's threshold", () => {
  const surge = episode("VOLUME_SURGE", 734, 500);
  assert.equal(story(surge), `The volume was 7.3× the usual one, within 60${THIN}s; the price went from 100.0 to 99.5.`);
  assert.equal(thresholdText(surge), `5× the usual volume within 60${THIN}s`);
  assert.match(story(episode("SELL_IMBALANCE", -85, 60)), /^Takers sold more than they bought, by 85.00.% of the volume/);
  const silence = episode("SILENCE", 1200, 1000);
  assert.equal(story(silence), `No trade came after 100.0 for 60${THIN}s, 12.0× the usual gap.`);
  assert.equal(thresholdText(silence), `10× the usual gap within 60${THIN}s`);
  assert.match(story(episode("DISLOCATION", -0.5, 0.4)), /^The price was 99.5, 0.50.% below the median of the other venues, 100.0\.$/);
  assert.equal(thresholdText(episode("CUSTOM", 7, 5)), `5 within 60${THIN}s`);
  assert.match(story(episode("FLASH_CRASH", -0.5, 0.4)), /^The price fell from 100.0 to 99.5 within/);
});
