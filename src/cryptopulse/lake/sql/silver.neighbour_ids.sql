-- New trades and the intervals of ids held -> the ids held that stand right before or after a stretch of new ones.
-- Whether the bar of such a neighbour is complete depends on the new trades.
WITH runs AS (
    SELECT symbol, trade_id, trade_id - ROW_NUMBER() OVER (PARTITION BY symbol ORDER BY trade_id) AS run
    FROM silver.fact_crypto_trades
),
edges AS (
    SELECT symbol, MIN(trade_id) - 1 AS before_id, MAX(trade_id) + 1 AS after_id
    FROM runs
    GROUP BY symbol, run
)
SELECT e.symbol, e.before_id AS trade_id
FROM edges AS e
JOIN silver.trade_id_coverage AS c ON c.symbol = e.symbol AND e.before_id BETWEEN c.first_trade_id AND c.last_trade_id
UNION
SELECT e.symbol, e.after_id
FROM edges AS e
JOIN silver.trade_id_coverage AS c ON c.symbol = e.symbol AND e.after_id BETWEEN c.first_trade_id AND c.last_trade_id
