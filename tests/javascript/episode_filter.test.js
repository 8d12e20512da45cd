import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./browser.js";

const { EpisodePages, matches, queryOf } = await load("episode_filter");

function episode(number, changes = {}) {
  return { alert_id: `a${number}`, symbol: "BTC-USD", alert_type: "FLASH_CRASH", severity: "HIGH", rule: "r", state: "CLOSED", opened_at: number * 1000, ...changes };
}

// The server over `rows`: pages of three, the newest first.
function page(rows, pages) {
  const all = rows.filter((row) => matches(row, pages.filters)).sort((a, b) => b.opened_at - a.opened_at);
  const left = all.filter((row) => !pages.oldest || row.opened_at < pages.oldest.opened_at);
  return { rows: left.slice(0, 3), total: all.length, is_last: left.length <= 3 };
}

const ids = (pages) => pages.rows().map((row) => row.alert_id).sort();

test("the first click on Older shows the next page, though the newest came live", () => {
  const rows = Array.from({ length: 9 }, (_, at) => episode(at + 1));
  const pages = new EpisodePages();
  pages.receive({ kind: "snapshot", rows });
  pages.addPage(page(rows, pages));
  assert.deepEqual(ids(pages), ["a7", "a8", "a9"]);
  assert.equal(pages.total, 9);
  pages.addPage(page(rows, pages));
  assert.deepEqual(ids(pages), ["a4", "a5", "a6", "a7", "a8", "a9"]);
  pages.addPage(page(rows, pages));
  assert.equal(ids(pages).length, 9);
  assert.ok(pages.isLast);
});

test("an open one shows however old it is", () => {
  const rows = [episode(1, { state: "OPEN" }), ...Array.from({ length: 9 }, (_, at) => episode(at + 2))];
  const pages = new EpisodePages();
  pages.receive({ kind: "snapshot", rows });
  pages.addPage(page(rows, pages));
  assert.deepEqual(ids(pages), ["a1", "a10", "a8", "a9"]);
});

test("the total follows what comes, changes and goes", () => {
  const rows = [episode(1), episode(2)];
  const pages = new EpisodePages();
  pages.begin({ state: "OPEN" });
  pages.receive({ kind: "snapshot", rows });
  pages.addPage(page(rows, pages));
  assert.equal(pages.total, 0);
  assert.deepEqual(pages.receive({ kind: "change", rows: [episode(3, { state: "OPEN" }), episode(4)] }), ["a3", "a4"]);
  assert.deepEqual([pages.total, ids(pages)], [1, ["a3"]]);
  assert.deepEqual(pages.receive({ kind: "change", rows: [episode(3)] }), []);
  assert.deepEqual([pages.total, ids(pages)], [0, []]);
  pages.receive({ kind: "change", rows: [episode(5, { state: "OPEN" })] });
  pages.receive({ kind: "change", rows: [], gone: ["a5", "unknown"] });
  assert.deepEqual([pages.total, ids(pages)], [0, []]);
});

test("what is asked of the server is what live ones are judged by", () => {
  const filters = { product: "btc", alert_type: "", severity: "HIGH", sinceMs: 5 };
  assert.equal(queryOf(filters).toString(), "severity=HIGH&product=btc&start=5");
  assert.ok(matches(episode(5), filters));
  assert.ok(!matches(episode(4), filters));
  assert.ok(!matches(episode(5, { symbol: "ETH-USD" }), filters));
  assert.ok(!matches(episode(5, { severity: "WARNING" }), filters));
  assert.equal(queryOf({}).toString(), "");
});
