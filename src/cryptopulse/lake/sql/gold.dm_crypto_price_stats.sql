-- Bars -> statistics of 5 minutes.
-- Volatility is the realised volatility of the window: the square root of the sum of squared log returns from one
-- minute's close to the next (Andersen, Bollerslev: "Answering the Skeptics", 1998); the first minute's return is
-- from its open. The squares are summed as decimals, so that the order of rows can't change the result.
WITH windowed AS (
    SELECT
        *,
        TIMESTAMP_MICROS(UNIX_MICROS(window_start) - UNIX_MICROS(window_start) % 300000000) AS stats_start
    FROM gold.dm_trade_bars
),
chained AS (
    SELECT
        *,
        COALESCE(LAG(close) OVER (PARTITION BY symbol, stats_start ORDER BY window_start), open) AS previous_close
    FROM windowed
)
SELECT
    symbol,
    stats_start AS window_start,
    stats_start + INTERVAL 5 MINUTES AS window_end,
    CAST(SUM(price_sum) AS DOUBLE) / SUM(trade_count) AS avg_price,
    MAX(high) AS max_price,
    MIN(low) AS min_price,
    CAST(SUM(volume) AS DECIMAL(38, 12)) AS total_trade_volume,
    CAST(SUM(trade_count) AS BIGINT) AS trade_count,
    CAST(SUM(notional) AS DOUBLE) / CAST(SUM(volume) AS DOUBLE) AS vwap,
    MIN_BY(open, first_trade_id) AS open_price,
    MAX_BY(close, last_trade_id) AS close_price,
    SQRT(CAST(SUM(CAST(
        LN(CAST(close AS DOUBLE) / CAST(previous_close AS DOUBLE))
        * LN(CAST(close AS DOUBLE) / CAST(previous_close AS DOUBLE)) AS DECIMAL(38, 24))) AS DOUBLE)) AS volatility,
    CAST(stats_start AS DATE) AS window_date
FROM chained
GROUP BY symbol, stats_start
