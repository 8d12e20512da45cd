-- Trades, rules and the episodes known so far -> episodes.
--
-- The rule: a trade is over the threshold when the price has fallen (rise: climbed) by threshold_pct or more from the
-- highest (lowest) price of its look-back: the trades of the last lookback_s seconds of exchange time up to itself, in
-- the order of ids among trades of one time. It is judged at every trade, so a V is caught, and the result does not
-- depend on how the stream was cut.
--
-- Trades over the threshold that follow each other within cool_down_s are one episode. What an episode says is made of
-- minima and maxima, so judging a trade twice, or on a part of its look-back first, changes nothing in the end.
--
-- The highest price of a sliding look-back is found with two running maxima (van Herk, 1992; Gil and Werman, 1993):
-- time is cut into blocks as long as the look-back; a look-back is the end of one block and the start of the next.
-- A probe row stands at the start of each judged trade's look-back and picks up the maximum from there to the block's
-- end, and how many trades lay before it. A surge is a crash of the negated price: level = direction * price.
WITH judged AS (
    SELECT
        r.symbol, r.rule, r.alert_type, r.direction, r.threshold_pct, r.lookback_s, r.cool_down_s, r.min_volume,
        r.min_trades, t.trade_id, t.price, t.trade_size,
        UNIX_MICROS(t.event_time) AS at,
        CAST(r.lookback_s AS BIGINT) * 1000000 AS lookback_us,
        -- Later trades don't look back at the news; their episodes may be unknown here.
        t.event_time BETWEEN r.judge_from AND r.judge_to + r.lookback_s * INTERVAL 1 SECOND AS is_judged
    FROM silver.fact_crypto_trades AS t
    JOIN alert_rules AS r ON r.symbol = t.symbol
    WHERE t.event_time >= r.judge_from - r.lookback_s * INTERVAL 1 SECOND
),
points AS (
    SELECT
        symbol, rule, alert_type, trade_id, at, 1 AS is_trade,
        CAST(FLOOR(at / lookback_us) AS BIGINT) AS block, direction * price AS level, trade_size
    FROM judged
    UNION ALL
    SELECT
        symbol, rule, alert_type, trade_id, at - lookback_us, 0,
        CAST(FLOOR((at - lookback_us) / lookback_us) AS BIGINT), NULL, NULL
    FROM judged
    WHERE is_judged
),
running AS (
    SELECT
        symbol, rule, alert_type, trade_id, is_trade,
        MAX(level) OVER (
            PARTITION BY symbol, rule, alert_type, block ORDER BY at, is_trade, trade_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS block_so_far,
        MAX(level) OVER (
            PARTITION BY symbol, rule, alert_type, block ORDER BY at DESC, is_trade DESC, trade_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS block_from_here,
        SUM(is_trade) OVER (
            PARTITION BY symbol, rule, alert_type ORDER BY at, is_trade, trade_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS trades_so_far,
        SUM(trade_size) OVER (
            PARTITION BY symbol, rule, alert_type ORDER BY at, is_trade, trade_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS volume_so_far
    FROM points
),
measured AS (
    SELECT
        j.*,
        GREATEST(here.block_so_far, COALESCE(before.block_from_here, here.block_so_far)) AS best_level,
        here.trades_so_far - before.trades_so_far AS lookback_trades,
        here.volume_so_far - COALESCE(before.volume_so_far, 0) AS lookback_volume
    FROM judged AS j
    JOIN running AS here
        ON here.symbol = j.symbol AND here.rule = j.rule AND here.alert_type = j.alert_type
        AND here.trade_id = j.trade_id AND here.is_trade = 1
    JOIN running AS before
        ON before.symbol = j.symbol AND before.rule = j.rule AND before.alert_type = j.alert_type
        AND before.trade_id = j.trade_id AND before.is_trade = 0
    WHERE j.is_judged
),
over_threshold AS (
    SELECT
        *,
        direction * best_level AS from_price,
        direction * (CAST(price AS DOUBLE) / CAST(direction * best_level AS DOUBLE)) AS depth
    FROM measured
    WHERE direction * price * 100 <= best_level * (100 - direction * threshold_pct)
        AND lookback_trades >= min_trades
        AND lookback_volume >= min_volume
),
-- Each trade over the threshold as an episode of one trade, beside the episodes known.
pieces AS (
    SELECT
        symbol, rule, alert_type, direction, threshold_pct, lookback_s, cool_down_s, depth,
        at AS opened, at AS last_seen, trade_id AS trigger_trade_id, trade_id AS last_trigger_trade_id,
        from_price AS start_price, price AS end_price, trade_id AS end_trade_id, at AS ended,
        CAST(NULL AS BIGINT) AS start_trade_id, CAST(NULL AS BIGINT) AS started, CAST(NULL AS TIMESTAMP) AS detected_at
    FROM over_threshold
    UNION ALL
    SELECT
        symbol, rule, alert_type, CASE alert_type WHEN 'FLASH_CRASH' THEN 1 ELSE -1 END, threshold_pct, lookback_s, cool_down_s,
        CASE alert_type WHEN 'FLASH_CRASH' THEN 1 ELSE -1 END * (CAST(end_price AS DOUBLE) / CAST(start_price AS DOUBLE)),
        UNIX_MICROS(opened_at), UNIX_MICROS(last_trigger_at), trigger_trade_id, last_trigger_trade_id,
        start_price, end_price, end_trade_id, UNIX_MICROS(window_end),
        start_trade_id, UNIX_MICROS(window_start), detected_at
    FROM gold.dm_market_alerts
),
walked AS (
    SELECT
        *,
        MAX(last_seen) OVER (
            PARTITION BY symbol, rule, alert_type ORDER BY opened, trigger_trade_id, last_seen
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS seen_to
    FROM pieces
),
numbered AS (
    SELECT
        *,
        SUM(CASE WHEN seen_to IS NULL OR opened - seen_to > CAST(cool_down_s AS BIGINT) * 1000000 THEN 1 ELSE 0 END) OVER (
            -- A trade judged again stands beside its known episode: seen_to keeps the two in the order they were walked.
            PARTITION BY symbol, rule, alert_type ORDER BY opened, trigger_trade_id, last_seen, seen_to NULLS FIRST
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS episode
    FROM walked
),
ranked AS (
    SELECT
        *,
        ROW_NUMBER() OVER (PARTITION BY symbol, rule, alert_type, episode ORDER BY opened, trigger_trade_id) AS by_start,
        ROW_NUMBER() OVER (
            PARTITION BY symbol, rule, alert_type, episode ORDER BY last_seen DESC, last_trigger_trade_id DESC
        ) AS by_end,
        ROW_NUMBER() OVER (
            PARTITION BY symbol, rule, alert_type, episode ORDER BY depth, ended, end_trade_id, start_trade_id NULLS FIRST
        ) AS by_depth
    FROM numbered
),
episodes AS (
    SELECT
        symbol, rule, alert_type, episode,
        MAX(direction) AS direction,
        MAX(CASE WHEN by_start = 1 THEN threshold_pct END) AS threshold_pct,
        MAX(CASE WHEN by_start = 1 THEN lookback_s END) AS lookback_s,
        MAX(CASE WHEN by_start = 1 THEN cool_down_s END) AS cool_down_s,
        MIN(opened) AS opened,
        MAX(last_seen) AS last_seen,
        MAX(CASE WHEN by_start = 1 THEN trigger_trade_id END) AS trigger_trade_id,
        MAX(CASE WHEN by_end = 1 THEN last_trigger_trade_id END) AS last_trigger_trade_id,
        MAX(CASE WHEN by_depth = 1 THEN start_price END) AS start_price,
        MAX(CASE WHEN by_depth = 1 THEN end_price END) AS end_price,
        MAX(CASE WHEN by_depth = 1 THEN end_trade_id END) AS end_trade_id,
        MAX(CASE WHEN by_depth = 1 THEN ended END) AS ended,
        MAX(CASE WHEN by_depth = 1 THEN start_trade_id END) AS start_trade_id,
        MAX(CASE WHEN by_depth = 1 THEN started END) AS started,
        MIN(detected_at) AS detected_at
    FROM ranked
    GROUP BY symbol, rule, alert_type, episode
),
-- The trade that the deepest change is measured from: the last one at start_price within the look-back. Looked for
-- again when the deepest trade is judged again: a late trade can be a later one.
starts AS (
    SELECT
        e.symbol, e.rule, e.alert_type, e.episode,
        MAX(t.trade_id) AS start_trade_id,
        MAX_BY(UNIX_MICROS(t.event_time), t.trade_id) AS started
    FROM episodes AS e
    JOIN silver.fact_crypto_trades AS t
        ON t.symbol = e.symbol AND t.price = e.start_price
        AND UNIX_MICROS(t.event_time) BETWEEN e.ended - CAST(e.lookback_s AS BIGINT) * 1000000 AND e.ended
        AND (UNIX_MICROS(t.event_time) < e.ended OR t.trade_id <= e.end_trade_id)
    WHERE e.start_trade_id IS NULL
    GROUP BY e.symbol, e.rule, e.alert_type, e.episode
)
SELECT
    CONCAT(e.rule, ':', e.alert_type, ':', e.symbol, ':', CAST(e.trigger_trade_id AS STRING)) AS alert_id,
    e.symbol, e.alert_type, e.rule, e.threshold_pct, e.lookback_s, e.cool_down_s,
    CASE
        WHEN ABS(CAST(e.end_price AS DOUBLE) / CAST(e.start_price AS DOUBLE) - 1) * 100 >= 4 * CAST(e.threshold_pct AS DOUBLE) THEN 'CRITICAL'
        WHEN ABS(CAST(e.end_price AS DOUBLE) / CAST(e.start_price AS DOUBLE) - 1) * 100 >= 2 * CAST(e.threshold_pct AS DOUBLE) THEN 'HIGH'
        ELSE 'WARNING'
    END AS severity,
    CASE WHEN c.watermark_us - e.last_seen > CAST(e.cool_down_s AS BIGINT) * 1000000 THEN 'CLOSED' ELSE 'OPEN' END AS state,
    (CAST(e.end_price AS DOUBLE) / CAST(e.start_price AS DOUBLE) - 1) * 100 AS price_change_pct,
    e.start_price, e.end_price,
    TIMESTAMP_MICROS(COALESCE(e.started, s.started)) AS window_start,
    TIMESTAMP_MICROS(e.ended) AS window_end,
    TIMESTAMP_MICROS(e.opened) AS opened_at,
    TIMESTAMP_MICROS(e.last_seen) AS last_trigger_at,
    COALESCE(e.start_trade_id, s.start_trade_id) AS start_trade_id,
    e.trigger_trade_id, e.end_trade_id, e.last_trigger_trade_id,
    COALESCE(e.detected_at, CURRENT_TIMESTAMP()) AS detected_at
FROM episodes AS e
CROSS JOIN alert_clock AS c
LEFT JOIN starts AS s
    ON s.symbol = e.symbol AND s.rule = e.rule AND s.alert_type = e.alert_type AND s.episode = e.episode
