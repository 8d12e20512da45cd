-- Parsed messages -> those refused, one row a message, with the first reason.
SELECT
    `partition`, `offset`, MIN(partition_key) AS partition_key, MIN(reason) AS reason, MIN(body) AS body,
    MIN(received_time) AS received_time, MIN(source) AS source, CAST(MIN(received_time) AS DATE) AS received_date
FROM silver.parsed_trades
WHERE reason IS NOT NULL
GROUP BY `partition`, `offset`
