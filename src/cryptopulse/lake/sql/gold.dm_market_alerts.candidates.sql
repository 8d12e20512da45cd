-- Which products and rules can have news at all: those whose whole stretch of prices is as wide as the threshold.
-- Cheap, and true wherever a single trade is over the threshold, so nothing is missed.
SELECT r.symbol, r.rule, r.alert_type
FROM alert_rules AS r
JOIN silver.fact_crypto_trades AS t ON t.symbol = r.symbol
WHERE t.event_time >= r.judge_from - r.lookback_s * INTERVAL 1 SECOND
GROUP BY r.symbol, r.rule, r.alert_type, r.direction, r.threshold_pct
HAVING MIN(t.price) * 100 <= MAX(t.price) * (100 - r.threshold_pct)
    OR (r.direction = -1 AND MAX(t.price) * 100 >= MIN(t.price) * (100 + r.threshold_pct))
