-- Raw messages -> one row for each trade they carry, and one for each message that is refused, with the reason.
-- A view between bronze and silver: fact_crypto_trades takes the rows without a reason, quarantined_messages the rest.
-- Three kinds of message: the Exchange feed's match/last_match, the Advanced Trade feed's market_trades, and a page
-- of the REST interface (an array of one product's trades; the product is in partition_key).
-- All give the maker's side; the taker's is the opposite.
-- A message is one JSON value in UTF-8. Engines differ in what they make of anything else (Spark's reader replaces bytes
-- that are no UTF-8, stops at the end of the first value, and takes an object for an array of one), so that is asked here.
WITH texts AS (
    SELECT
        `partition`, `offset`, partition_key, received_time, source, body, CAST(body AS STRING) AS text
    FROM bronze.coinbase_raw_trades
),
decoded AS (
    SELECT
        `partition`, `offset`, partition_key, received_time, source,
        CASE WHEN source <> 'rest' AND TRIM(text) LIKE '{%}' AND text NOT LIKE '%}{%' AND ENCODE(text, 'UTF-8') = body THEN from_json(
            text,
            'type STRING, channel STRING, product_id STRING, trade_id STRING, price STRING, size STRING, side STRING, time STRING, events ARRAY<STRUCT<trades: ARRAY<STRUCT<product_id: STRING, trade_id: STRING, price: STRING, size: STRING, side: STRING, time: STRING>>>>'
        ) END AS m,
        CASE WHEN source = 'rest' AND TRIM(text) LIKE '[%]' AND text NOT LIKE '%][%' AND ENCODE(text, 'UTF-8') = body THEN from_json(
            text,
            'ARRAY<STRUCT<trade_id: STRING, price: STRING, size: STRING, side: STRING, time: STRING>>'
        ) END AS page
    FROM texts
),
batched AS (
    SELECT `partition`, `offset`, received_time, source, EXPLODE(FLATTEN(FILTER(TRANSFORM(m.events, e -> e.trades), t -> t IS NOT NULL))) AS t
    FROM decoded
    WHERE m.channel = 'market_trades' AND m.type IS NULL
),
paged AS (
    SELECT `partition`, `offset`, partition_key, received_time, source, EXPLODE(page) AS t
    FROM decoded
    WHERE source = 'rest'
),
claimed AS (
    SELECT
        `partition`, `offset`, received_time, source, CAST(NULL AS STRING) AS refusal,
        m.product_id AS symbol, m.trade_id AS trade_id, m.price AS price, m.size AS size, m.side AS side, m.time AS time
    FROM decoded
    WHERE m.type IN ('match', 'last_match')
    UNION ALL
    SELECT
        `partition`, `offset`, received_time, source, CAST(NULL AS STRING),
        t.product_id, t.trade_id, t.price, t.size, t.side, t.time
    FROM batched
    UNION ALL
    SELECT
        `partition`, `offset`, received_time, source,
        CASE WHEN t.trade_id IS NULL AND t.price IS NULL AND t.size IS NULL THEN 'not a JSON array of trades' END,
        partition_key, t.trade_id, t.price, t.size, t.side, t.time
    FROM paged
    UNION ALL
    SELECT
        `partition`, `offset`, received_time, source,
        CASE
            WHEN source = 'rest' THEN 'not a JSON array of trades'
            WHEN m.type IS NOT NULL THEN 'unknown message type'
            WHEN m.channel = 'market_trades' THEN 'market_trades without events or their trades'
            WHEN m.channel IS NOT NULL THEN 'unknown channel'
            ELSE 'not a JSON object with a type or a channel'
        END,
        NULL, NULL, NULL, NULL, NULL, NULL
    FROM decoded
    WHERE (m.type IS NULL OR m.type NOT IN ('match', 'last_match'))
        AND ((source = 'rest' AND page IS NULL)
        OR (source <> 'rest' AND (
            (m.type IS NULL AND m.channel IS NULL)
            -- Known control messages; a pattern, as a long list of values is planned as a join. Without $, which in Spark
            -- also stands before a final line end.
            OR NOT CONCAT(m.type, ';') RLIKE '^(subscriptions|heartbeat|error|ticker|status|snapshot|l2update|received|open|done|change|activate|auction);'
            OR (m.type IS NULL AND NOT CONCAT(m.channel, ';') RLIKE '^(market_trades|subscriptions|heartbeats|ticker|ticker_batch|status|candles|l2_data|user);')
            OR (m.type IS NULL AND m.channel = 'market_trades'
                AND (m.events IS NULL OR SIZE(FILTER(m.events, e -> e.trades IS NULL)) > 0)))))
),
typed AS (
    SELECT
        `partition`, `offset`, received_time, source, refusal, symbol, trade_id, price, size, side, time,
        TRY_CAST(trade_id AS BIGINT) AS trade_id_value,
        TRY_CAST(price AS DECIMAL(24, 12)) AS price_value,
        TRY_CAST(size AS DECIMAL(28, 12)) AS size_value,
        -- Times come with up to nine fractional digits, the tables keep six.
        TRY_CAST(CASE WHEN LENGTH(time) > 27 THEN CONCAT(LEFT(time, 26), 'Z') ELSE time END AS TIMESTAMP) AS time_value
    FROM claimed
)
-- A number with more decimals than the table keeps is refused rather than rounded; only a long one can have them.
-- What a text may hold is asked as "has it another letter": ^…$ would let Spark take a text that ends with a line end.
SELECT
    `partition`, `offset`, received_time, source,
    CASE
        WHEN refusal IS NOT NULL THEN refusal
        WHEN symbol IS NULL OR symbol RLIKE '[^A-Z0-9-]' OR symbol NOT LIKE '_%-_%' OR symbol LIKE '%-%-%'
            THEN 'product_id is missing or malformed'
        WHEN trade_id_value IS NULL OR trade_id RLIKE '[^0-9]' THEN 'trade_id is missing or not a whole number'
        WHEN price_value IS NULL OR price RLIKE '[^0-9.]' OR price LIKE '.%' OR price LIKE '%.'
            THEN 'price is missing, malformed or out of range'
        WHEN LENGTH(price) > 13 AND price RLIKE '[.][0-9]{12}[0-9]*[1-9]' THEN 'price has more than 12 decimals'
        WHEN price_value <= 0 THEN 'price is not positive'
        WHEN size_value IS NULL OR size RLIKE '[^0-9.]' OR size LIKE '.%' OR size LIKE '%.'
            THEN 'size is missing, malformed or out of range'
        WHEN LENGTH(size) > 13 AND size RLIKE '[.][0-9]{12}[0-9]*[1-9]' THEN 'size has more than 12 decimals'
        WHEN size_value <= 0 THEN 'size is not positive'
        -- The exact product has 24 decimals of 38 digits: a larger one would stop the whole batch of bars.
        WHEN CAST(price_value AS DOUBLE) * CAST(size_value AS DOUBLE) >= 1e13 THEN 'price times size is out of range'
        WHEN side IS NULL OR side NOT IN ('buy', 'sell', 'BUY', 'SELL') THEN 'side is neither buy nor sell'
        -- The hour 24 is the next day's midnight to one engine and no time to the other.
        WHEN time_value IS NULL OR NOT time LIKE '____-__-__T__:__:__%Z' OR time LIKE '____-__-__T24%'
            THEN 'time is missing or malformed'
    END AS reason,
    symbol,
    trade_id_value AS trade_id,
    price_value AS price,
    size_value AS trade_size,
    CASE WHEN side IN ('sell', 'SELL') THEN 'BUY' ELSE 'SELL' END AS side,
    time_value AS event_time
FROM typed
