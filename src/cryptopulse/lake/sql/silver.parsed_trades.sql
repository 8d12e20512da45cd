-- Raw messages -> one row for each trade they carry, and one for each message that is refused, with the reason.
-- A view between bronze and silver: fact_crypto_trades takes the rows without a reason, quarantined_messages the rest.
-- Three kinds of message: the Exchange feed's match/last_match, the Advanced Trade feed's market_trades, and a page
-- of the REST interface (an array of one product's trades; the product is in partition_key).
-- All give the maker's side; the taker's is the opposite.
WITH decoded AS (
    SELECT
        `partition`, `offset`, partition_key, received_time, source, body,
        CASE WHEN source <> 'rest' THEN from_json(
            CAST(body AS STRING),
            'type STRING, channel STRING, product_id STRING, trade_id STRING, price STRING, size STRING, side STRING, time STRING, events ARRAY<STRUCT<trades: ARRAY<STRUCT<product_id: STRING, trade_id: STRING, price: STRING, size: STRING, side: STRING, time: STRING>>>>'
        ) END AS m,
        CASE WHEN source = 'rest' THEN from_json(
            CAST(body AS STRING),
            'ARRAY<STRUCT<product_id: STRING, trade_id: STRING, price: STRING, size: STRING, side: STRING, time: STRING>>'
        ) END AS page
    FROM bronze.coinbase_raw_trades
),
sorted AS (
    SELECT
        *,
        CASE
            WHEN source = 'rest' THEN CASE WHEN page IS NULL THEN 'not a JSON array of trades' END
            WHEN m IS NULL THEN 'not a JSON object'
            WHEN m.type IN ('match', 'last_match') THEN NULL
            WHEN m.type IN (
                'subscriptions', 'heartbeat', 'error', 'ticker', 'status', 'snapshot', 'l2update', 'received', 'open', 'done',
                'change', 'activate', 'auction') THEN 'control'
            WHEN m.type IS NOT NULL THEN 'unknown message type'
            WHEN m.channel = 'market_trades' THEN CASE WHEN m.events IS NULL THEN 'market_trades without events' END
            WHEN m.channel IN (
                'subscriptions', 'heartbeats', 'ticker', 'ticker_batch', 'status', 'candles', 'l2_data', 'user') THEN 'control'
            WHEN m.channel IS NOT NULL THEN 'unknown channel'
            ELSE 'neither type nor channel'
        END AS refusal
    FROM decoded
),
claimed AS (
    SELECT
        `partition`, `offset`, partition_key, received_time, source, body, refusal,
        EXPLODE(CASE
            WHEN refusal IS NOT NULL OR m.type IS NOT NULL THEN ARRAY(NAMED_STRUCT(
                'product_id', m.product_id, 'trade_id', m.trade_id, 'price', m.price, 'size', m.size, 'side', m.side, 'time', m.time))
            WHEN source = 'rest' THEN page
            ELSE FLATTEN(TRANSFORM(m.events, e -> e.trades))
        END) AS t
    FROM sorted
    WHERE refusal IS NULL OR refusal <> 'control'
),
named AS (
    SELECT
        `partition`, `offset`, partition_key, received_time, source, body, refusal,
        CASE WHEN source = 'rest' THEN partition_key ELSE t.product_id END AS symbol,
        t.trade_id AS trade_id, t.price AS price, t.size AS size, LOWER(t.side) AS side,
        -- Times come with up to nine fractional digits, the tables keep six.
        CASE WHEN LENGTH(t.time) > 27 THEN CONCAT(LEFT(t.time, 26), 'Z') ELSE t.time END AS time
    FROM claimed
),
-- A decimal with more digits than the table keeps is refused rather than rounded.
judged AS (
    SELECT
        *,
        COALESCE(
            refusal,
            CASE
                WHEN symbol IS NULL OR NOT symbol RLIKE '^[A-Z0-9]+-[A-Z0-9]+$' THEN 'product_id is missing or malformed'
                WHEN trade_id IS NULL OR NOT trade_id RLIKE '^[0-9]{1,18}$' THEN 'trade_id is missing or not a whole number'
                WHEN price IS NULL OR NOT price RLIKE '^[0-9]{1,12}([.][0-9]{1,12}0*)?$' THEN 'price is missing, malformed or out of range'
                WHEN size IS NULL OR NOT size RLIKE '^[0-9]{1,16}([.][0-9]{1,12}0*)?$' THEN 'size is missing, malformed or out of range'
                WHEN TRY_CAST(price AS DECIMAL(24, 12)) <= 0 THEN 'price is not positive'
                WHEN TRY_CAST(size AS DECIMAL(28, 12)) <= 0 THEN 'size is not positive'
                WHEN side IS NULL OR side NOT IN ('buy', 'sell') THEN 'side is neither buy nor sell'
                WHEN time IS NULL OR NOT time RLIKE '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}([.][0-9]{1,6})?Z$'
                    OR TRY_CAST(time AS TIMESTAMP) IS NULL THEN 'time is missing or malformed'
            END
        ) AS reason
    FROM named
)
SELECT
    `partition`, `offset`, partition_key, received_time, source, reason,
    CASE WHEN reason IS NOT NULL THEN body END AS body,
    symbol,
    TRY_CAST(trade_id AS BIGINT) AS trade_id,
    TRY_CAST(price AS DECIMAL(24, 12)) AS price,
    TRY_CAST(size AS DECIMAL(28, 12)) AS trade_size,
    CASE side WHEN 'sell' THEN 'BUY' WHEN 'buy' THEN 'SELL' END AS side,
    TRY_CAST(time AS TIMESTAMP) AS event_time
FROM judged
