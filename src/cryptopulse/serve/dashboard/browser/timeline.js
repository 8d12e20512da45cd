// The candles that a chart shows: a range without a gap. It is either the live one, which ends with the newest candle
// and grows, or one of the past, which joins the live one when it reaches it. Both are read further on demand.

import { Candles, candlesOf } from "./candles.js";

export const KEPT_MAX = 6000; // candles of a range; what is furthest from the view is let go and read again on demand
export const TAIL_KEPT = 1200; // of the live range while another one is shown

export class Timeline {
  // `load({before} or {start})` reads a page of candles from the server, of times in seconds: {columns, rows, is_end}.
  constructor(load) {
    this.load = load;
    this.reset();
  }

  reset() {
    this.live = this.shown = new Candles();
    this.hasOldest = false; // whether there is nothing before the first one shown
    this.loading = null;
  }

  get isLive() {
    return this.shown === this.live;
  }

  // A message of the topic. `isFollowing`: whether the viewer looks at the newest candles.
  receive(message, isFollowing) {
    const rows = candlesOf(message);
    if (message.kind === "snapshot") {
      const before = this.live;
      const isJoined = rows.length && before.length && rows[0].time <= before.last; // what is older was read before
      if (isJoined) before.cut(0, before.placeOf(rows[0].time));
      const live = new Candles([...(isJoined ? before.rows : []), ...rows]);
      // A viewer of the past keeps what he looks at, also when the connection was away for so long that a gap came.
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

  // What is shown becomes a range of the past; the live one goes on by itself.
  part() {
    this.live = new Candles(this.shown.rows.slice(-TAIL_KEPT));
  }

  // Reads what comes before the first one shown. Whether there was something.
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

  // Reads what comes after the last one shown, of the past.
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

  // Makes the range of the past the live one, when it reaches it.
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

  // Shows the range that `time` lies in, and reads it when it is not there. Whether there is any candle.
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

  // One reading at a time; what comes after the view has left for elsewhere is dropped.
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
