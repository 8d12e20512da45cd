-- Parsed trades -> the trades that silver does not hold yet, each once.
-- The ids held (intervals) and the ids offered (intervals of one) are walked in order: an offered id is new when
-- everything before it ends below it. The copy that came first counts.
WITH claims AS (
    SELECT
        symbol, first_trade_id AS trade_id, last_trade_id AS claimed_to, -1 AS `partition`, CAST(-1 AS BIGINT) AS `offset`,
        NULL AS price, NULL AS trade_size, NULL AS side, NULL AS event_time, NULL AS ingestion_time, NULL AS source
    FROM silver.trade_id_coverage
    UNION ALL
    SELECT
        symbol, trade_id, trade_id, `partition`, `offset`, price, trade_size, side, event_time, received_time, source
    FROM silver.parsed_trades
    WHERE reason IS NULL
),
walked AS (
    SELECT
        *,
        MAX(claimed_to) OVER (
            PARTITION BY symbol ORDER BY trade_id, `partition`, `offset`
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS held_to
    FROM claims
)
SELECT
    trade_id, symbol, price, trade_size, side, event_time, ingestion_time, source, CAST(event_time AS DATE) AS event_date
FROM walked
WHERE `offset` >= 0 AND (held_to IS NULL OR trade_id > held_to)
