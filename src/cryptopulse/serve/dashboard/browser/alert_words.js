// What an episode measured, as text and colour; by its type.

import * as format from "./format.js";

// alert_type → its plural, as filters and forms name it
export const TYPES = {
  FLASH_CRASH: "Crashes",
  PRICE_SURGE: "Surges",
  VOLUME_SURGE: "Volume surges",
  BUY_IMBALANCE: "Buyers prevail",
  SELL_IMBALANCE: "Sellers prevail",
  VOLATILITY: "Volatility",
  DISLOCATION: "Dislocations",
  SILENCE: "Silences",
  CUSTOM: "Custom rules",
};
const USUAL = { VOLUME_SURGE: "volume", SILENCE: "gap" }; // measured as a multiple of something usual
const TONES = { FLASH_CRASH: "down", SELL_IMBALANCE: "down", PRICE_SURGE: "up", BUY_IMBALANCE: "up" };

export function isOfPrice({ alert_type: type }) {
  return type === "FLASH_CRASH" || type === "PRICE_SURGE";
}

// "down", "up" or "flat"
export function directionOf({ alert_type: type }) {
  return TONES[type] ?? "flat";
}

// The same as the name of a colour of charts.
export function colorOf(alert) {
  return TONES[alert.alert_type] ?? "warn";
}

// "−1.01 %"; "7.3×" the usual volume; "+85 %" net of the volume; "1.20 %" of volatility
export function measured({ alert_type: type, price_change_pct: value }, digits = 2) {
  if (!format.known(value)) return format.NONE;
  if (USUAL[type]) return `${format.price(value / 100, 1)}×`;
  if (type === "CUSTOM") return format.price(value, digits);
  return type === "VOLATILITY" ? format.percent(value, digits).replace("+", "") : format.percent(value, digits);
}

// How many thresholds it measured: compares episodes of all types.
export function strength(alert) {
  return Math.abs(alert.price_change_pct) / Number(alert.threshold_pct);
}

// One sentence about what happened.
export function story(alert) {
  const [from, to] = format.pricesAlike(alert.start_price, alert.end_price);
  const within = `within ${format.age((alert.window_end - alert.window_start) / 1e6)}`;
  const size = measured({ ...alert, price_change_pct: Math.abs(alert.price_change_pct) }).replace("+", "");
  if (isOfPrice(alert)) return `The price ${alert.price_change_pct > 0 ? "rose" : "fell"} from ${from} to ${to} ${within}.`;
  if (alert.alert_type === "SILENCE") return `No trade came after ${from} for ${within.slice(7)}, ${size} the usual gap.`;
  if (alert.alert_type === "DISLOCATION") return `The price was ${to}, ${size} ${alert.price_change_pct > 0 ? "above" : "below"} the median of the other venues, ${from}.`;
  const first = {
    VOLUME_SURGE: `The volume was ${size} the usual one`,
    BUY_IMBALANCE: `Takers bought more than they sold, by ${size} of the volume`,
    SELL_IMBALANCE: `Takers sold more than they bought, by ${size} of the volume`,
    VOLATILITY: `The realised volatility was ${size}`,
    CUSTOM: `The value of the rule was ${size}`,
  }[alert.alert_type];
  return `${first}, ${within}; the price went from ${from} to ${to}.`;
}

// The rule's threshold: "1 % within 2 min", "5× the usual volume within 60 s"
export function thresholdText(alert) {
  const value = Number(alert.threshold_pct);
  const usual = USUAL[alert.alert_type];
  const size = usual ? `${value / 100}× the usual ${usual}` : alert.alert_type === "CUSTOM" ? value : `${value}\u202f%`;
  return `${size} within ${format.age(alert.lookback_s)}`;
}
