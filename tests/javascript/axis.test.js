import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const { roundPlaces, roundTimes } = await load("axis");
const NOON = Date.UTC(2025, 9, 10, 12) / 1000;
const every = (seconds, count, start = NOON) => Array.from({ length: count }, (_, place) => start + place * seconds);

test("labels stand at round times, whatever the first candle is", () => {
  for (const [seconds, count, start] of [[1, 120, 7], [5, 200, 35], [60, 120, 60 * 7], [300, 240, 300], [3600, 300, 3600 * 5]]) {
    const times = every(seconds, count, NOON + start);
    const places = roundPlaces(times, 0, count - 1, 10);
    assert.ok(places.length >= 3 && places.length <= 10, `${seconds}: ${places.length}`);
    const steps = new Set(places.slice(1).map((place, at) => times[place] - times[places[at]]));
    assert.equal(steps.size, 1);
    const [step] = steps;
    for (const place of places) assert.equal(times[place] % step, 0);
  }
});

test("a zone's own midnight is round", () => {
  const times = every(3600, 96, NOON + 1800);
  const offset = 9.5 * 3600;
  for (const place of roundPlaces(times, 0, 95, 4, offset)) assert.equal((times[place] + offset) % 86_400, 0);
});

test("quiet hours bring no two labels together", () => {
  const times = [...every(1, 50), ...every(7200, 10, NOON + 3600), ...every(1, 50, NOON + 90_000)];
  const places = roundPlaces(times, 0, times.length - 1, 8);
  for (let at = 1; at < places.length; at++) assert.ok(places[at] - places[at - 1] >= times.length / 8);
});

test("one candle has a label", () => {
  assert.deepEqual(roundPlaces([NOON + 17], 0, 0, 10), [0]);
});

test("an axis of time has round ticks, no more than have room", () => {
  const first = NOON * 1000 + 17_000;
  for (const spanMs of [9000, 600_000, 10_800_000, 86_400_000 * 40]) {
    const times = roundTimes(first, first + spanMs, 7);
    assert.ok(times.length >= 2 && times.length <= 8, `${spanMs}: ${times.length}`);
    const step = times[1] - times[0];
    for (const time of times) assert.ok(time % step === 0 && time >= first && time <= first + spanMs);
  }
  assert.deepEqual(roundTimes(0, 0, 5), [0]);
});
