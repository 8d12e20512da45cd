-- Trades -> bars of one minute. Open and close are by trade id: all fills of an order share one time.
WITH bars AS (
    SELECT
        symbol,
        UNIX_MICROS(event_time) - UNIX_MICROS(event_time) % 60000000 AS window_us,
        MIN_BY(price, trade_id) AS open,
        MAX(price) AS high,
        MIN(price) AS low,
        MAX_BY(price, trade_id) AS close,
        SUM(trade_size) AS volume,
        SUM(CAST(price * trade_size AS DECIMAL(38, 12))) AS notional,
        SUM(CASE WHEN side = 'BUY' THEN trade_size ELSE CAST(0 AS DECIMAL(28, 12)) END) AS buy_volume,
        COUNT(*) AS trade_count,
        COUNT(CASE WHEN side = 'BUY' THEN 1 END) AS buy_count,
        COUNT(CASE WHEN source = 'rest' THEN 1 END) AS rest_count,
        SUM(price) AS price_sum,
        MIN(trade_id) AS first_trade_id,
        MAX(trade_id) AS last_trade_id
    FROM silver.fact_crypto_trades
    GROUP BY symbol, UNIX_MICROS(event_time) - UNIX_MICROS(event_time) % 60000000
)
-- Complete: one interval of ids held reaches from before the first to after the last, so nothing is missing inside
-- or at an edge, and the next trade has already come.
SELECT
    b.symbol, TIMESTAMP_MICROS(b.window_us) AS window_start, b.open, b.high, b.low, b.close, b.volume, b.notional,
    CAST(b.notional AS DOUBLE) / CAST(b.volume AS DOUBLE) AS vwap,
    b.buy_volume, b.volume - b.buy_volume AS sell_volume, b.trade_count, b.buy_count, b.rest_count, b.price_sum,
    b.first_trade_id, b.last_trade_id,
    c.symbol IS NOT NULL AS is_complete,
    CAST(TIMESTAMP_MICROS(b.window_us) AS DATE) AS window_date
FROM bars AS b
LEFT JOIN silver.trade_id_coverage AS c
    ON c.symbol = b.symbol AND c.first_trade_id < b.first_trade_id AND c.last_trade_id > b.last_trade_id
