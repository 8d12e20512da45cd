// The candles that a chart shows: a range without a gap. It is either the live range, which ends with the newest candle and
// grows, or a past range, which is joined with the live one when it reaches it. Both are extended on demand.

import { Candles, candlesOf } from "./candles.js";

export const KEPT_MAX = 6000; // candles of a range; those furthest from the view are dropped and read again on demand
export const TAIL_KEPT = 1200; // candles of the live range that are kept while another range is shown

export class Timeline {
  // `load({before} or {start})`, times in seconds, reads a page of candles from the server: {columns, rows, is_end}.
  constructor(load) {
    this.load = load;
    this.reset();
  }

  reset() {
    this.live = this.shown = new Candles();
    this.hasOldest = false; // whether there are no candles before the first one shown
    this.loading = null;
  }

  get isLive() {
    return this.shown === this.live;
  }

  // Takes in a message of the topic. `isFollowing`: whether the viewer looks at the newest candles.
  receive(message, isFollowing) {
    const rows = candlesOf(message);
    if (message.kind === "snapshot") {
      const before = this.live;
      const isJoined = rows.length && before.length && rows[0].time <= before.last; // then the older candles are kept
      if (isJoined) before.cut(0, before.placeOf(rows[0].time));
      const live = new Candles([...(isJoined ? before.rows : []), ...rows]);
      // A viewer of the past keeps the visible range, even if the connection was lost for so long that there is a gap.
      if (this.isLive && (isFollowing || isJoined || !before.length)) this.shown = live;
      this.live = live;
      if (!isJoined && this.isLive) this.hasOldest = false;
    } else {
      this.live.put(rows);
    }
    const excess = this.live.length - (this.isLive ? KEPT_MAX : TAIL_KEPT);
    if (excess <= 0) return;
    if (this.isLive && !isFollowing) this.part();
    else {
      this.live.cut(excess);
      if (this.isLive) this.hasOldest = false;
    }
  }

  // The visible range becomes a past range; the live range continues separately.
  part() {
    this.live = new Candles(this.shown.rows.slice(-TAIL_KEPT));
  }

  // Reads the candles before the first one shown. Resolves to whether there were any.
  older() {
    if (this.hasOldest) return Promise.resolve(false);
    const { shown } = this;
    return this.page(shown.length ? { before: shown.first } : {}, ({ rows, is_end: isEnd }) => {
      shown.put(rows);
      this.hasOldest = isEnd;
      const excess = shown.length - KEPT_MAX;
      if (excess > 0) {
        if (this.isLive) this.part();
        shown.cut(0, -excess);
      }
      return rows.length > 0;
    });
  }

  // Reads the candles after the last one of a past range.
  newer() {
    if (this.isLive) return Promise.resolve(false);
    const { shown } = this;
    return this.page({ start: shown.last + 0.001 }, ({ rows, is_end: isEnd }) => {
      shown.put(rows);
      this.join(isEnd);
      const excess = shown.length - KEPT_MAX;
      if (excess > 0) {
        shown.cut(excess);
        this.hasOldest = false;
      }
      return rows.length > 0;
    });
  }

  // Joins the past range with the live one if it has reached it.
  join(isEnd) {
    const { shown, live } = this;
    if (!isEnd && !(live.length && shown.last >= live.first)) return;
    shown.put(live.rows.slice(live.placeOf(shown.last)));
    this.live = shown;
  }

  toNewest() {
    this.loading = null;
    if (!this.isLive) this.hasOldest = false;
    this.shown = this.live;
  }

  // Shows the range that contains `time`, and reads it if necessary. Resolves to whether there is any candle.
  async goTo(time) {
    const covers = (candles) => candles.length && time >= candles.first && time <= candles.last;
    if (covers(this.shown)) return true;
    if (covers(this.live)) {
      this.toNewest();
      return true;
    }
    this.loading = null;
    return this.page([{ before: time }, { start: time }], ([before, after]) => {
      const rows = [...before.rows, ...after.rows];
      if (!rows.length) return false;
      this.shown = new Candles(rows);
      this.hasOldest = before.is_end;
      this.join(after.is_end);
      return true;
    });
  }

  // Reads pages, one read at a time; drops a result that comes after the view has moved elsewhere.
  async page(requests, use) {
    if (this.loading) return false;
    const loading = (this.loading = {});
    try {
      const read = async (request) => {
        const page = await this.load(request);
        return { ...page, rows: candlesOf(page) };
      };
      const pages = await (Array.isArray(requests) ? Promise.all(requests.map(read)) : read(requests));
      return this.loading === loading && use(pages);
    } finally {
      if (this.loading === loading) this.loading = null;
    }
  }
}
