// Filters of episodes, both as a query for the server and as a test of live episodes: the two must agree.

export const RANKS = { WARNING: 0, HIGH: 1, CRITICAL: 2 };

const EQUAL = ["symbol", "alert_type", "severity", "rule", "state"];

// The query for filters: `product` (a part of its id), `sinceMs` (of opening), and values of EQUAL; empty ones don't count.
export function queryOf(filters) {
  const query = new URLSearchParams();
  for (const name of EQUAL) if (filters[name]) query.set(name, filters[name]);
  if (filters.product) query.set("product", filters.product);
  if (filters.sinceMs) query.set("start", filters.sinceMs);
  return query;
}

export function matches(row, filters) {
  return (
    EQUAL.every((name) => !filters[name] || row[name] === filters[name]) &&
    row.symbol.toUpperCase().includes((filters.product ?? "").toUpperCase()) &&
    (!filters.sinceMs || row.opened_at >= filters.sinceMs * 1000)
  );
}

// Filtered episodes: the pages read from the table, and the live ones.
export class EpisodePages {
  constructor() {
    this.live = new Map(); // alert_id → episode, from the topic
    this.begin({});
  }

  // Sets other filters and drops the pages; reads nothing yet.
  begin(filters) {
    this.filters = filters;
    this.pages = new Map();
    this.oldest = null; // the last row of the last page
    this.isLast = false;
    this.total = null; // number of matches on all pages
  }

  // Adds the server's next page.
  addPage({ rows, total, is_last: isLast }) {
    for (const row of rows) this.pages.set(row.alert_id, row);
    this.oldest = rows[rows.length - 1] ?? this.oldest;
    Object.assign(this, { total, isLast });
  }

  // Takes in a message of the topic; returns the new ids.
  receive({ kind, rows, gone = [] }) {
    const isCounted = (row) => Number(Boolean(row) && matches(row, this.filters));
    const known = (id) => this.pages.get(id) ?? this.live.get(id);
    const isChange = kind === "change";
    if (!isChange) this.live.clear();
    const fresh = isChange ? rows.map((row) => row.alert_id).filter((id) => !known(id)) : [];
    for (const id of gone) {
      if (this.total !== null) this.total -= isCounted(known(id));
      this.live.delete(id);
      this.pages.delete(id);
    }
    for (const row of rows) {
      const id = row.alert_id;
      if (isChange && this.total !== null) this.total += isCounted(row) - isCounted(known(id));
      this.live.set(id, row);
      if (this.pages.has(id)) this.pages.set(id, row);
    }
    return fresh;
  }

  get(id) {
    return this.live.get(id) ?? this.pages.get(id);
  }

  // The rows to show. Live ones only as far back as pages were read, so that the next page continues the list; open ones
  // always.
  rows() {
    const isWithin = (row) => this.isLast || row.state === "OPEN" || (this.oldest && row.opened_at >= this.oldest.opened_at);
    const live = [...this.live].filter(([, row]) => isWithin(row));
    return [...new Map([...this.pages, ...live]).values()].filter((row) => matches(row, this.filters));
  }
}
