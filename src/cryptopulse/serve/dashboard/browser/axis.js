// Positions of the labels of a time axis: at round times, far enough apart to be read.

import * as format from "./format.js";

export const LABEL_PX = 74; // width of a time with its date

const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000];

// Round times (ms) from `firstMs` to `lastMs`: multiples of the finest step that gives at most `labelsMax` of them.
export function roundTimes(firstMs, lastMs, labelsMax, offsetMs = 0) {
  const step = 1000 * (STEPS_S.find((one) => (lastMs - firstMs) / (one * 1000) <= labelsMax) ?? STEPS_S[STEPS_S.length - 1]);
  const found = [];
  for (let at = Math.ceil((firstMs + offsetMs) / step) * step - offsetMs; at <= lastMs; at += step) found.push(at);
  return found.slice(0, labelsMax + 1);
}

// `axisLabel` of ECharts for the range of two times (ms) on `widthPx`: at round times of the chosen zone, the first with its
// date.
export function timeLabels(firstMs, lastMs, widthPx) {
  const offsetMs = format.zoneOffsetS(firstMs) * 1000;
  const times = roundTimes(firstMs, lastMs, Math.max(Math.floor(widthPx / LABEL_PX), 1), offsetMs);
  return {
    customValues: times,
    lineHeight: 14,
    hideOverlap: true,
    formatter: (ms) => format.tick(ms, ms === times[0]),
  };
}

// Indexes from `first` to `last` of the round times in `times` (seconds since 1970, ascending): multiples of the finest step
// that gives at most `labelsMax` of them. If gaps leave fewer than two, the first candle after a multiple is taken instead.
// `offsetS`: by how much the zone is ahead of UTC.
export function roundPlaces(times, first, last, labelsMax, offsetS = 0) {
  const local = (place) => times[place] + offsetS;
  const isAt = (place, step) => local(place) % step === 0;
  const isPast = (place, step) => isAt(place, step) || (place > 0 && Math.floor(local(place) / step) !== Math.floor(local(place - 1) / step));
  const apart = (last - first + 1) / labelsMax;
  for (const isRound of [isAt, isPast]) {
    for (const step of STEPS_S) {
      const found = [];
      for (let place = first; place <= last; place++) if (isRound(place, step)) found.push(place);
      if (found.length > labelsMax) continue;
      const kept = []; // without those too close together, because of hours without candles
      for (const place of found) if (!kept.length || place - kept[kept.length - 1] >= apart) kept.push(place);
      if (kept.length > 1) return kept;
      break; // a coarser step finds no more
    }
  }
  return [first];
}
