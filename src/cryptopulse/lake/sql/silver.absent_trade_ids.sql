-- Rows of REST pages -> the ids that the exchange itself does not have, as closed intervals.
-- A page is a stretch of a product's trades without a gap, so an id between two of its own that it does not hold is absent.
-- A refused row still shows that its id is there. A page with a row whose id or product can't be read proves nothing: that
-- row may be the very trade that seems to be absent.
WITH pages AS (
    SELECT
        symbol, trade_id, `partition`, `offset`, received_time,
        LEAD(trade_id) OVER (PARTITION BY `partition`, `offset` ORDER BY trade_id) AS next_id,
        MAX(CASE WHEN reason IN (
            'not a JSON array of trades',
            'product_id is missing or malformed',
            'trade_id is missing or not a whole number'
        ) THEN 1 ELSE 0 END) OVER (PARTITION BY `partition`, `offset`) AS is_unreadable
    FROM silver.parsed_trades
    WHERE source = 'rest'
)
SELECT
    symbol, trade_id + 1 AS first_trade_id, next_id - 1 AS last_trade_id, `partition`, `offset`, received_time,
    CAST(received_time AS DATE) AS received_date
FROM pages
WHERE is_unreadable = 0 AND next_id - trade_id > 1
