-- Intervals held and new trades -> intervals held.
-- Gaps and islands: a new interval starts where everything before ends more than one id lower. New trades of a product
-- without a gap are one interval at once (silver holds an id once, so their number tells).
WITH spans AS (
    SELECT symbol, MIN(trade_id) AS first_trade_id, MAX(trade_id) AS last_trade_id, COUNT(*) AS trades
    FROM silver.fact_crypto_trades
    GROUP BY symbol
),
claims AS (
    SELECT symbol, first_trade_id, last_trade_id FROM silver.trade_id_coverage
    UNION ALL
    SELECT symbol, first_trade_id, last_trade_id FROM spans WHERE trades = last_trade_id - first_trade_id + 1
    UNION ALL
    SELECT t.symbol, t.trade_id, t.trade_id
    FROM silver.fact_crypto_trades AS t
    JOIN spans AS s ON s.symbol = t.symbol AND s.trades < s.last_trade_id - s.first_trade_id + 1
),
walked AS (
    SELECT
        symbol, first_trade_id, last_trade_id,
        MAX(last_trade_id) OVER (
            PARTITION BY symbol ORDER BY first_trade_id, last_trade_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS held_to
    FROM claims
),
numbered AS (
    SELECT
        symbol, first_trade_id, last_trade_id,
        SUM(CASE WHEN held_to IS NULL OR first_trade_id > held_to + 1 THEN 1 ELSE 0 END) OVER (
            PARTITION BY symbol ORDER BY first_trade_id, last_trade_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS island
    FROM walked
)
SELECT symbol, MIN(first_trade_id) AS first_trade_id, MAX(last_trade_id) AS last_trade_id
FROM numbered
GROUP BY symbol, island
