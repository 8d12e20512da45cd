-- Bars, intervals of ids held, and ids proved absent -> what each hour of a product holds of the ids it answers for.
-- A hole lies between two intervals. It is counted where the trade right above it lies, so that a hole at an edge of two
-- hours is counted once. What is held counts as held, whatever a page proved before.
WITH hours AS (
    SELECT
        symbol,
        UNIX_MICROS(window_start) - UNIX_MICROS(window_start) % 3600000000 AS window_us,
        MIN(first_trade_id) AS first_held,
        MAX(last_trade_id) AS last_held,
        SUM(rest_count) AS healed_ids
    FROM gold.dm_trade_bars
    GROUP BY symbol, UNIX_MICROS(window_start) - UNIX_MICROS(window_start) % 3600000000
),
intervals AS (
    SELECT
        symbol, first_trade_id AS held_above,
        LAG(last_trade_id) OVER (PARTITION BY symbol ORDER BY first_trade_id) AS held_below
    FROM silver.trade_id_coverage
),
holes AS (
    SELECT symbol, held_below, held_above, held_above - held_below - 1 AS ids
    FROM intervals
    WHERE held_below IS NOT NULL
),
-- Proofs may overlap: of each only what lies above all earlier ones.
walked AS (
    SELECT
        symbol, first_trade_id, last_trade_id,
        MAX(last_trade_id) OVER (
            PARTITION BY symbol ORDER BY first_trade_id, last_trade_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS proved_to
    FROM silver.absent_trade_ids
),
proofs AS (
    SELECT symbol, GREATEST(first_trade_id - 1, COALESCE(proved_to, -1)) AS after_id, last_trade_id
    FROM walked
    WHERE proved_to IS NULL OR last_trade_id > proved_to
),
absent AS (
    SELECT
        h.symbol, h.held_above,
        SUM(LEAST(p.last_trade_id, h.held_above - 1) - GREATEST(p.after_id, h.held_below)) AS ids
    FROM holes AS h
    JOIN proofs AS p ON p.symbol = h.symbol AND p.after_id < h.held_above - 1 AND p.last_trade_id > h.held_below
    GROUP BY h.symbol, h.held_above
),
answered AS (
    SELECT
        w.symbol, w.window_us, w.last_held, w.healed_ids,
        LEAST(w.first_held, COALESCE(MIN(h.held_below) + 1, w.first_held)) AS first_trade_id,
        COALESCE(SUM(h.ids), 0) AS lacking,
        COALESCE(SUM(a.ids), 0) AS absent_ids
    FROM hours AS w
    LEFT JOIN holes AS h ON h.symbol = w.symbol AND h.held_above BETWEEN w.first_held AND w.last_held
    LEFT JOIN absent AS a ON a.symbol = h.symbol AND a.held_above = h.held_above
    GROUP BY w.symbol, w.window_us, w.first_held, w.last_held, w.healed_ids
)
SELECT
    symbol,
    TIMESTAMP_MICROS(window_us) AS window_start,
    TIMESTAMP_MICROS(window_us) + INTERVAL 1 HOUR AS window_end,
    first_trade_id,
    last_held AS last_trade_id,
    last_held - first_trade_id + 1 AS expected_ids,
    CAST(last_held - first_trade_id + 1 - lacking AS BIGINT) AS held_ids,
    CAST(healed_ids AS BIGINT) AS healed_ids,
    CAST(absent_ids AS BIGINT) AS absent_ids,
    CAST(lacking - absent_ids AS BIGINT) AS missing_ids,
    CASE WHEN healed_ids > 0 THEN 'rest' END AS healed_from,
    CASE WHEN healed_ids > 0 OR lacking > 0 THEN 'trade' END AS witness,
    lacking = absent_ids AS is_complete,
    CAST(TIMESTAMP_MICROS(window_us) AS DATE) AS window_date
FROM answered
