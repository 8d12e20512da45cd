-- Messages with a refused row -> one row a message, with the first reason.
WITH refused AS (
    SELECT `partition`, `offset`, MIN(reason) AS reason
    FROM silver.parsed_trades
    WHERE reason IS NOT NULL
    GROUP BY `partition`, `offset`
)
SELECT
    m.`partition`, m.`offset`, m.partition_key, r.reason, m.body, m.received_time, m.source, m.received_date
FROM bronze.coinbase_raw_trades AS m
JOIN refused AS r ON r.`partition` = m.`partition` AND r.`offset` = m.`offset`
