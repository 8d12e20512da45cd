// Where the labels of an axis of time stand: at round times, far enough from each other to be read.

import * as format from "./format.js";

export const LABEL_PX = 74; // of a time with its date

const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000];

// The multiples of the finest round step, of which no more than `labelsMax` lie from `firstMs` to `lastMs`, in ms.
export function roundTimes(firstMs, lastMs, labelsMax, offsetMs = 0) {
  const step = 1000 * (STEPS_S.find((one) => (lastMs - firstMs) / (one * 1000) <= labelsMax) ?? STEPS_S[STEPS_S.length - 1]);
  const found = [];
  for (let at = Math.ceil((firstMs + offsetMs) / step) * step - offsetMs; at <= lastMs; at += step) found.push(at);
  return found.slice(0, labelsMax + 1);
}

// `axisLabel` of ECharts for what lies between two times (ms) on `widthPx`: round in the zone that is chosen, the first one
// with its date.
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

// Places in `times` (seconds since 1970, ascending) from `first` to `last`: the multiples of the finest round step of which
// no more than `labelsMax` are there. Where quiet times leave fewer than two, the first candle after a multiple counts for
// it. `offsetS`: what the zone is ahead of UTC.
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
      const kept = []; // hours without candles bring round times together
      for (const place of found) if (!kept.length || place - kept[kept.length - 1] >= apart) kept.push(place);
      if (kept.length > 1) return kept;
      break; // a coarser step finds no more
    }
  }
  return [first];
}
