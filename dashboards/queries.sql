-- What the dashboards ask. Spark SQL, as in src/cryptopulse/lake/sql: the Databricks dashboard is made from this file
-- (deploy/databricks/generate.py), and cryptopulse.lake.queries reads it for everybody else.
--
-- A query starts with a line `-- name:`, which gives its name, ends with a semicolon, and says about itself:
--   title         what stands over it
--   description   what it shows; may go on in lines that start with `--   `
--   chart         how to draw it: `line`, `bar` or `table`, then x=, y= (one or more columns) and color=
-- Tables have two parts, so the catalog is whoever's session it is. Times are UTC.
--
-- "Now" is the newest minute that has a trade, not the clock on the wall: a lake that was filled by a replay or copied from
-- elsewhere looks as it did then, and a live one is a fraction of a second behind anyway. Minutes in the future (an
-- exchange's clock may be off) don't count. Only data_freshness tells ages by the clock, as that is its purpose.
--
-- Days are named beside times because days are what the tables are partitioned by.

-- name: price_trend
-- title: Price and its average of the last hour
-- description: The last price of every minute of the last 24 hours, and the mean price of all trades of the 60 minutes up to
--   and with that minute, each trade counting once.
-- chart: line x=window_start y=price,average_price_1h
WITH newest AS (
    SELECT MAX(window_start) AS minute FROM gold.dm_trade_bars WHERE window_start <= CURRENT_TIMESTAMP()
),
rolling AS (
    SELECT
        symbol, window_start, close AS price,
        CAST(SUM(price_sum) OVER last_hour AS DOUBLE) / SUM(trade_count) OVER last_hour AS average_price_1h
    FROM gold.dm_trade_bars
    WHERE window_date >= (SELECT CAST(minute - INTERVAL '25' HOUR AS DATE) FROM newest)
        AND window_start > (SELECT minute - INTERVAL '25' HOUR FROM newest)
        AND window_start <= (SELECT minute FROM newest)
    WINDOW last_hour AS (
        PARTITION BY symbol ORDER BY window_start RANGE BETWEEN INTERVAL '59' MINUTE PRECEDING AND CURRENT ROW
    )
)
SELECT symbol, window_start, price, average_price_1h
FROM rolling
WHERE window_start > (SELECT minute - INTERVAL '24' HOUR FROM newest)
ORDER BY symbol, window_start;

-- name: volume_by_asset
-- title: Volume of the last 24 hours
-- description: What was traded of each product, in its base currency and, so that products can be compared, in its quote
--   currency.
-- chart: bar x=symbol y=notional
WITH newest AS (
    SELECT MAX(window_start) AS minute FROM gold.dm_trade_bars WHERE window_start <= CURRENT_TIMESTAMP()
)
SELECT symbol, SUM(volume) AS volume, SUM(notional) AS notional, CAST(SUM(trade_count) AS BIGINT) AS trade_count
FROM gold.dm_trade_bars
WHERE window_date >= (SELECT CAST(minute - INTERVAL '24' HOUR AS DATE) FROM newest)
    AND window_start > (SELECT minute - INTERVAL '24' HOUR FROM newest)
    AND window_start <= (SELECT minute FROM newest)
GROUP BY symbol
ORDER BY notional DESC, symbol;

-- name: live_alerts
-- title: Alerts
-- description: The 100 newest episodes, those still open first.
-- chart: table
SELECT
    state, severity, symbol, alert_type, rule, price_change_pct, start_price, end_price, opened_at, last_trigger_at,
    detected_at, alert_id
FROM gold.dm_market_alerts
ORDER BY CASE state WHEN 'OPEN' THEN 0 ELSE 1 END, opened_at DESC, alert_id
LIMIT 100;

-- name: sentiment
-- title: Buying and selling in the last hour
-- description: Trades and base volume of the last 60 minutes by the taker's side. A share over 50 % means that buyers were in
--   a greater hurry than sellers.
-- chart: bar x=symbol y=buy_count,sell_count
WITH newest AS (
    SELECT MAX(window_start) AS minute FROM gold.dm_trade_bars WHERE window_start <= CURRENT_TIMESTAMP()
)
SELECT
    symbol,
    CAST(SUM(buy_count) AS BIGINT) AS buy_count,
    CAST(SUM(trade_count - buy_count) AS BIGINT) AS sell_count,
    SUM(buy_volume) AS buy_volume,
    SUM(sell_volume) AS sell_volume,
    100 * CAST(SUM(buy_volume) AS DOUBLE) / CAST(SUM(volume) AS DOUBLE) AS buy_volume_pct
FROM gold.dm_trade_bars
WHERE window_date >= (SELECT CAST(minute - INTERVAL '1' HOUR AS DATE) FROM newest)
    AND window_start > (SELECT minute - INTERVAL '1' HOUR FROM newest)
    AND window_start <= (SELECT minute FROM newest)
GROUP BY symbol
ORDER BY symbol;

-- name: trades_a_minute
-- title: Trades a minute
-- description: How many trades there were in each minute of the last 3 hours, and how much they moved.
-- chart: bar x=window_start y=trade_count color=symbol
WITH newest AS (
    SELECT MAX(window_start) AS minute FROM gold.dm_trade_bars WHERE window_start <= CURRENT_TIMESTAMP()
)
SELECT symbol, window_start, trade_count, volume, notional
FROM gold.dm_trade_bars
WHERE window_date >= (SELECT CAST(minute - INTERVAL '3' HOUR AS DATE) FROM newest)
    AND window_start > (SELECT minute - INTERVAL '3' HOUR FROM newest)
    AND window_start <= (SELECT minute FROM newest)
ORDER BY symbol, window_start;

-- name: latency_by_hop
-- title: Latency of each hop, p99
-- description: Milliseconds that the trades of the last 10 minutes took, by hop and minute: half of them at most p50_ms, all but
--   a hundredth at most p99_ms. Only what came live: a trade that was fetched later to close a hole is late on purpose. The
--   exchange's clock is not ours, so the first hop may be off by a constant, even below zero.
-- chart: line x=minute y=p99_ms color=hop
WITH newest AS (
    SELECT MAX(received_time) AS time
    FROM bronze.coinbase_raw_trades
    WHERE received_date = (SELECT MAX(received_date) FROM bronze.coinbase_raw_trades)
),
messages AS (
    SELECT received_time, enqueued_time, bronze_ingestion_time
    FROM bronze.coinbase_raw_trades
    WHERE received_date >= (SELECT CAST(time - INTERVAL '10' MINUTE AS DATE) FROM newest)
        AND received_time > (SELECT time - INTERVAL '10' MINUTE FROM newest)
        AND source = 'websocket'
),
-- A trade does not know its message, but both know when it came off the socket. Messages of one microsecond are of one
-- read of the socket.
taken AS (
    SELECT received_time, MIN(bronze_ingestion_time) AS bronze_ingestion_time FROM messages GROUP BY received_time
),
trades AS (
    SELECT t.event_time, t.ingestion_time, m.bronze_ingestion_time, t.load_timestamp
    FROM silver.fact_crypto_trades AS t
    JOIN taken AS m ON m.received_time = t.ingestion_time
    WHERE t.source = 'websocket'
        -- A trade is received on the day of its event or, just after midnight, on the next.
        AND t.event_date >= (SELECT CAST(time - INTERVAL '1' DAY AS DATE) FROM newest)
        AND t.ingestion_time > (SELECT time - INTERVAL '10' MINUTE FROM newest)
),
hops AS (
    SELECT 1 AS place, 'exchange to receive' AS hop, ingestion_time AS received_time, event_time AS since, ingestion_time AS until
    FROM trades
    UNION ALL
    SELECT 2, 'receive to log', received_time, received_time, enqueued_time FROM messages
    UNION ALL
    SELECT 3, 'log to bronze', received_time, enqueued_time, bronze_ingestion_time FROM messages
    UNION ALL
    SELECT 4, 'bronze to silver', ingestion_time, bronze_ingestion_time, load_timestamp FROM trades
    UNION ALL
    SELECT 5, 'receive to silver', ingestion_time, ingestion_time, load_timestamp FROM trades
),
measured AS (
    SELECT
        place, hop, DATE_TRUNC('MINUTE', received_time) AS minute,
        CAST(UNIX_MICROS(until) - UNIX_MICROS(since) AS DOUBLE) / 1000 AS ms
    FROM hops
)
SELECT
    hop, minute,
    PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY ms) AS p50_ms,
    PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY ms) AS p99_ms,
    COUNT(*) AS measured
FROM measured
GROUP BY place, hop, minute
ORDER BY minute, place;

-- name: completeness
-- title: Completeness
-- description: Coinbase numbers the trades of a product without gaps. From the first to the last id held: how many are held,
--   how many are missing, and in how many holes.
-- chart: table
SELECT
    symbol,
    MIN(first_trade_id) AS first_trade_id,
    MAX(last_trade_id) AS last_trade_id,
    CAST(SUM(last_trade_id - first_trade_id + 1) AS BIGINT) AS ids_held,
    CAST(MAX(last_trade_id) - MIN(first_trade_id) + 1 - SUM(last_trade_id - first_trade_id + 1) AS BIGINT) AS ids_missing,
    COUNT(*) - 1 AS holes,
    100 * CAST(SUM(last_trade_id - first_trade_id + 1) AS DOUBLE)
        / CAST(MAX(last_trade_id) - MIN(first_trade_id) + 1 AS DOUBLE) AS held_pct
FROM silver.trade_id_coverage
GROUP BY symbol
ORDER BY ids_missing DESC, symbol;

-- name: holes
-- title: Holes
-- description: The 100 newest runs of ids that are missing between two that are held.
-- chart: table
WITH intervals AS (
    SELECT
        symbol, last_trade_id + 1 AS first_missing_id,
        LEAD(first_trade_id) OVER (PARTITION BY symbol ORDER BY first_trade_id) - 1 AS last_missing_id
    FROM silver.trade_id_coverage
)
SELECT symbol, first_missing_id, last_missing_id, last_missing_id - first_missing_id + 1 AS ids_missing
FROM intervals
WHERE last_missing_id IS NOT NULL
ORDER BY first_missing_id DESC, symbol
LIMIT 100;

-- name: incomplete_hours
-- title: Hours in which trades were missed
-- description: The 100 newest hours of a product with ids that were missing: how many came later over REST (healed), how many
--   the exchange never had (absent), and how many are still missing.
-- chart: table
SELECT symbol, window_start, expected_ids, held_ids, healed_ids, absent_ids, missing_ids, is_complete
FROM gold.dm_completeness
WHERE witness IS NOT NULL
ORDER BY window_start DESC, symbol
LIMIT 100;

-- name: data_freshness
-- title: Freshness
-- description: When each table's newest day of data was last written to, and how many seconds ago that is by the clock on the
--   wall. Rows in the future don't count. No seconds: there are no others.
-- chart: table
WITH written AS (
    SELECT 1 AS place, 'bronze.coinbase_raw_trades' AS table_name, MAX(received_time) AS newest, MAX(bronze_ingestion_time) AS written_at
    FROM bronze.coinbase_raw_trades
    WHERE received_date = (SELECT MAX(received_date) FROM bronze.coinbase_raw_trades)
    UNION ALL
    SELECT 2, 'silver.fact_crypto_trades', MAX(event_time), MAX(load_timestamp)
    FROM silver.fact_crypto_trades
    WHERE event_date = (SELECT MAX(event_date) FROM silver.fact_crypto_trades WHERE event_date <= CURRENT_DATE())
        AND event_time <= CURRENT_TIMESTAMP()
    UNION ALL
    SELECT 3, 'gold.dm_trade_bars', MAX(window_start), MAX(load_timestamp)
    FROM gold.dm_trade_bars
    WHERE window_date = (SELECT MAX(window_date) FROM gold.dm_trade_bars WHERE window_date <= CURRENT_DATE())
        AND window_start <= CURRENT_TIMESTAMP()
    UNION ALL
    SELECT 4, 'gold.dm_crypto_price_stats', MAX(window_start), MAX(load_timestamp)
    FROM gold.dm_crypto_price_stats
    WHERE window_date = (SELECT MAX(window_date) FROM gold.dm_crypto_price_stats WHERE window_date <= CURRENT_DATE())
        AND window_start <= CURRENT_TIMESTAMP()
)
SELECT
    table_name, newest, written_at,
    CAST(UNIX_MICROS(CURRENT_TIMESTAMP()) - UNIX_MICROS(written_at) AS DOUBLE) / 1000000 AS age_s
FROM written
ORDER BY place;
