import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const { KEPT_MAX, TAIL_KEPT, Timeline } = await load("timeline");
const COLUMNS = ["time", "volume", "notional", "buy_volume"];
const row = (time) => [time, 1, 1, 1];
const range = (first, end) => Array.from({ length: Math.max(end - first, 0) }, (_, at) => first + at);

// A table of candles at the seconds 0 … `end`, of which none is at those in `without`; pages of `size`.
function table(end, { size = 100, without = () => false } = {}) {
  const times = range(0, end).filter((time) => !without(time));
  const read = async ({ before = Infinity, start = null }) => {
    const found = start === null ? times.filter((time) => time < before).slice(-size) : times.filter((time) => time >= start).slice(0, size);
    const isEnd = !found.length || (start === null ? found[0] === times[0] : found[found.length - 1] === times[times.length - 1]);
    return { columns: COLUMNS, rows: found.map(row), is_end: isEnd };
  };
  return { read, snapshot: (count = 50) => ({ kind: "snapshot", columns: COLUMNS, rows: times.slice(-count).map(row) }) };
}

const change = (...times) => ({ kind: "change", columns: COLUMNS, rows: times.map(row) });

test("older candles go before the live ones, down to the first", async () => {
  const { read, snapshot } = table(330);
  const timeline = new Timeline(read);
  timeline.receive(snapshot(), true);
  while (await timeline.older());
  assert.deepEqual(timeline.shown.times, range(0, 330));
  assert.ok(timeline.isLive && timeline.hasOldest);
  timeline.receive(change(330), false);
  assert.equal(timeline.shown.last, 330);
});

test("a jump reads both sides of a time, and going on joins the live candles without a gap", async () => {
  const { read, snapshot } = table(1000);
  const timeline = new Timeline(read);
  timeline.receive(snapshot(), true);
  assert.equal(await timeline.goTo(300.5), true);
  assert.deepEqual(timeline.shown.times, range(201, 401));
  assert.equal(timeline.isLive, false);
  timeline.receive(change(1000), false); // what comes meanwhile is not put behind the past
  assert.equal(timeline.shown.last, 400);
  for (let step = 0; step < 20 && !timeline.isLive; step++) await timeline.newer();
  assert.ok(timeline.isLive);
  assert.deepEqual(timeline.shown.times, range(201, 1001));
});

test("a jump to where the candles are already reads nothing", async () => {
  const { read, snapshot } = table(1000);
  let reads = 0;
  const timeline = new Timeline((asked) => ((reads += 1), read(asked)));
  timeline.receive(snapshot(), true);
  await timeline.goTo(980);
  assert.equal(reads, 0);
  await timeline.goTo(10);
  await timeline.goTo(50);
  assert.equal(reads, 2);
  await timeline.goTo(990);
  assert.ok(timeline.isLive);
  assert.equal(reads, 2);
});

test("a jump to before, after and between all candles shows those that are next", async () => {
  const { read, snapshot } = table(1000, { without: (time) => time > 200 && time < 700 });
  const timeline = new Timeline(read);
  timeline.receive(snapshot(), true);
  for (const [time, near] of [[-50, 0], [450, 200], [5000, 999]]) {
    assert.equal(await timeline.goTo(time), true);
    assert.equal(timeline.shown.times.includes(near), true);
  }
  const nothing = new Timeline(table(0).read);
  assert.equal(await nothing.goTo(5), false);
});

test("a snapshot that fits leaves what was read before, and a viewer of the past what he looks at", async () => {
  const { read } = table(2000);
  const timeline = new Timeline(read);
  timeline.receive({ kind: "snapshot", columns: COLUMNS, rows: range(900, 1000).map(row) }, true);
  await timeline.older();
  timeline.receive({ kind: "snapshot", columns: COLUMNS, rows: range(950, 1050).map(row) }, false);
  assert.deepEqual(timeline.shown.times, range(800, 1050));
  assert.ok(timeline.isLive);
  timeline.receive({ kind: "snapshot", columns: COLUMNS, rows: range(1900, 2000).map(row) }, false); // away for long
  assert.equal(timeline.isLive, false);
  assert.deepEqual(timeline.shown.times, range(800, 1050));
  while (!timeline.isLive) await timeline.newer();
  assert.deepEqual(timeline.shown.times, range(800, 2000));
});

test("a follower of the newest gets the newest after a gap", () => {
  const timeline = new Timeline(table(0).read);
  timeline.receive({ kind: "snapshot", columns: COLUMNS, rows: range(0, 9).map(row) }, true);
  timeline.receive({ kind: "snapshot", columns: COLUMNS, rows: range(100, 109).map(row) }, true);
  assert.deepEqual(timeline.shown.times, range(100, 109));
});

test("what is kept is bounded, and nothing near the view is let go", async () => {
  const { read, snapshot } = table(3 * KEPT_MAX, { size: 1000 });
  const timeline = new Timeline(read);
  timeline.receive(snapshot(1000), true);
  while (await timeline.older()) assert.ok(timeline.shown.length <= KEPT_MAX && timeline.live.length <= KEPT_MAX);
  assert.equal(timeline.shown.first, 0);
  assert.equal(timeline.isLive, false);
  assert.equal(timeline.live.length, TAIL_KEPT);
  while (!timeline.isLive) {
    await timeline.newer();
    assert.ok(timeline.shown.length <= KEPT_MAX);
  }
  assert.equal(timeline.shown.last, 3 * KEPT_MAX - 1);
  assert.deepEqual(timeline.shown.times, range(timeline.shown.first, 3 * KEPT_MAX));
  for (let time = 3 * KEPT_MAX; time < 4 * KEPT_MAX; time++) timeline.receive(change(time), true);
  assert.equal(timeline.shown.length, KEPT_MAX);
});

test("a reading that comes after the view has left for elsewhere is dropped", async () => {
  const { read, snapshot } = table(1000);
  const waiting = [];
  const timeline = new Timeline((asked) => new Promise((done) => waiting.push(async () => done(await read(asked)))));
  timeline.receive(snapshot(), true);
  const older = timeline.older();
  const there = timeline.goTo(100.5);
  for (const answer of waiting) await answer();
  assert.equal(await older, false);
  assert.equal(await there, true);
  assert.equal(timeline.shown.first, 1);
});

test("a reading that fails is told and can be tried again", async () => {
  const { read, snapshot } = table(1000);
  let isBroken = true;
  const timeline = new Timeline((asked) => (isBroken ? Promise.reject(new Error("busy")) : read(asked)));
  timeline.receive(snapshot(), true);
  await assert.rejects(timeline.older(), /busy/);
  isBroken = false;
  assert.equal(await timeline.older(), true);
});
