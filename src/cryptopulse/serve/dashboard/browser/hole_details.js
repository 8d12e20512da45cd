// Details of one hour or day of a product, or of one hole: the ids, the time, what to do, and a link to the chart. The focus
// stays where it was opened, so that the next cell or row is one key away.

import { fetchJson } from "./api.js";
import { currentHash, onHash, onKey, replaceAddress } from "./dom.js";
import * as format from "./format.js";
import { countsText } from "./heatmap.js";
import { DAY_MS, HOUR_MS, chartLink, holeOf, messageLink } from "./links.js";
import { detailsPanel } from "./panels.js";
import { refusedWithin } from "./refused.js";
import { auditCommand, backfillCommand, commandLine, isFetched } from "./repair.js";
import { Table } from "./table.js";

const RUNS_SHOWN = 5;
const COLUMNS = [
  { key: "first_id", label: "From id", kind: "count", sortable: false },
  { key: "last_id", label: "To id", kind: "count", sortable: false },
  { key: "ids", label: "Ids", kind: "count", sortable: false },
  { key: "state", label: "State", kind: "badge", sortable: false },
  { key: "since", label: "After", kind: "instant", sortable: false, hide: "phone" },
  { key: "until", label: "Before", kind: "instant", sortable: false, hide: "phone" },
];

export class HoleDetails {
  // `refusedOf(symbol)`: the ids of a product that are known to be in quarantine, see `refused.js`.
  constructor(parent, { path, lake, refusedOf }) {
    Object.assign(this, { path, lake, refusedOf });
    const html =
      '<div class="cp-commands"></div><div class="cp-hole-rows"></div>' +
      '<p class="cp-links"><a class="cp-to-chart"></a> <a class="cp-to-quarantine">Show the refused message</a></p>';
    Object.assign(this, detailsPanel(parent, "Details", "cp-hole", html, () => this.close()));
    this.table = new Table(this.find(".cp-hole-rows"), COLUMNS, {
      label: "Ids that are not held",
      keyOf: (row) => String(row.first_id),
      href: (row) => chartLink(this.symbol, this.placeOf(row)),
      sort: { key: "first_id", down: false },
    });
    this.ends = [
      onHash((hash) => this.open(hash)),
      onKey((event) => event.key === "Escape" && !this.element.hidden && this.close()),
      format.onZone(() => this.found && this.describe()),
      () => this.table.unmount(),
    ];
    this.open(currentHash());
  }

  close() {
    replaceAddress({ hash: "" });
    this.element.hidden = true;
  }

  async open(hash) {
    const { symbol, startMs, span, first, last } = holeOf(hash);
    this.element.hidden = !symbol || (startMs === null && !first);
    if (this.element.hidden) return;
    const isHole = startMs === null;
    const end = isHole ? null : startMs + (span === "day" ? DAY_MS : HOUR_MS);
    const ids = first === last ? `id ${format.count(first)}` : `ids ${format.count(first)} to ${format.count(last)}`;
    const title = () => `${symbol}, ${isHole ? ids : format.period(startMs, end)}`;
    Object.assign(this, { hash, symbol, isHole, start: startMs, end, title, found: null });
    this.table.replace([]);
    this.show("Reading …");
    this.element.scrollIntoView({ block: "nearest" });
    const query = isHole ? `ids?${new URLSearchParams({ first, last })}` : `time?${new URLSearchParams({ start: startMs, end })}`;
    try {
      const found = await fetchJson(`${this.path}/holes/${encodeURIComponent(symbol)}/${query}`);
      if (this.hash !== hash) return;
      this.found = found;
      this.describe();
    } catch (error) {
      if (this.hash === hash) this.show(`This could not be read: ${error.message}`);
    }
    this.element.scrollIntoView({ block: "nearest" });
  }

  show(text, { tags = [], commands = [], place = null, refused = null } = {}) {
    this.setHead([this.title()], tags);
    this.find(".cp-story").textContent = text;
    this.find(".cp-commands").replaceChildren(...commands.map(commandLine));
    const toChart = this.find(".cp-to-chart");
    const toQuarantine = this.find(".cp-to-quarantine");
    this.find(".cp-links").hidden = !place && !refused;
    toChart.hidden = !place;
    toQuarantine.hidden = !refused;
    toChart.textContent = `Show ${this.isHole ? "the hole" : "this time"} in the product’s chart`;
    if (place) toChart.href = chartLink(this.symbol, place);
    if (refused) toQuarantine.href = messageLink(refused);
  }

  // The position of a hole in the chart: between the trades next to it, if their times are known.
  placeOf({ since, until }) {
    const from = since ?? until ?? this.start;
    const to = until ?? since ?? this.end;
    return { atMs: (from + to) / 2, seconds: (to - from) / 1000 };
  }

  describe() {
    const { found, symbol, lake, isHole, start, end } = this;
    const messages = this.refusedOf(symbol);
    const refused = [];
    const rows = found.holes.map((hole) => {
      const ids = hole.last_id - hole.first_id + 1;
      const own = refusedWithin(messages, hole.first_id, hole.last_id);
      refused.push(...own);
      const state = hole.absent === ids ? "ABSENT" : hole.absent + own.length >= ids ? "REFUSED" : "MISSING";
      return { ...hole, ids, state };
    });
    this.table.replace(rows);
    this.table.table.hidden = !rows.length;
    this.table.note.hidden = true;
    const missing = rows.filter((row) => row.state === "MISSING");
    const times = missing.flatMap((row) => [row.since, row.until]).filter(format.known);
    const from = missing.some((row) => !format.known(row.since)) && !isHole ? start : Math.min(...times);
    const to = Math.max(...times, end ?? -Infinity);
    const commands = [isHole ? auditCommand([symbol], lake) : auditCommand([symbol], lake, start, end)];
    if (missing.length && isFetched(symbol) && Number.isFinite(from) && Number.isFinite(to)) commands.unshift(backfillCommand([symbol], from, to, lake));
    const text = [isHole ? this.holeText(rows) : this.timeText()];
    if (refused.length) {
      const ids = refused.slice(0, RUNS_SHOWN).map(format.count).join(", ");
      text.push(`Received and refused: ${ids}${refused.length > RUNS_SHOWN ? " and more" : ""}; see silver.quarantined_messages, a backfill would not help.`);
    }
    if (found.holes_found > rows.length) text.push(`The first ${rows.length} of ${format.count(found.holes_found)} holes are below.`);
    const state = missing.length ? "MISSING" : (rows.find((row) => row.state === "REFUSED") ?? rows[0])?.state ?? (found.healed.length ? "HEALED" : "COMPLETE");
    const place = isHole ? this.placeOf(rows[0] ?? {}) : { atMs: (start + end) / 2, seconds: (end - start) / 1000 };
    this.show(text.join(" "), {
      tags: found.first_id === null ? [] : [state],
      commands,
      place: Number.isFinite(place.atMs) ? place : null,
      refused: messages?.get(refused[0]),
    });
  }

  holeText(rows) {
    if (!rows.length) return "All of these ids are held by now.";
    const [since, until] = [rows[0].since, rows[rows.length - 1].until].map((ms) => (format.known(ms) ? format.instant(ms) : "an unknown time"));
    const held = rows.length === 1 ? "None of these ids is held." : "Some of these ids are held by now.";
    return `${held} The trades next to them are of ${since} and ${until} ${format.zoneName(rows[0].since ?? undefined)}.`;
  }

  timeText() {
    const { found } = this;
    if (found.first_id === null) return "No trade is stored of this time.";
    const runs = found.healed.slice(0, RUNS_SHOWN).map(([first, last]) => (first === last ? format.count(first) : `${format.count(first)} to ${format.count(last)}`));
    const healed = runs.length ? ` Healed: ${runs.join(", ")}${found.healed.length > RUNS_SHOWN ? " and more" : ""}.` : "";
    return `From id ${format.count(found.first_id)} to ${format.count(found.last_id)}: ${countsText(found)}${healed}`;
  }

  unmount() {
    for (const end of this.ends) end();
  }
}
