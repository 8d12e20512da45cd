-- Records of a Kafka topic, as Spark's source gives them -> raw messages.
-- What Kafka has no field for travels in headers: received_us (µs UTC as decimal digits) and source. A record without
-- them is another producer's: its own time counts, and it came over a WebSocket as far as anyone knows.
-- Run by engines that read Kafka by themselves; the embedded engine gets the same rows from `cryptopulse.log.kafka`.
-- Foreign bytes are taken as that one takes them: a key that is no UTF-8 gets replacement characters, an unknown source or
-- a time beyond the year 9999 counts as not said.
WITH labelled AS (
    SELECT
        *,
        CAST(GET(FILTER(headers, h -> h.key = 'received_us'), 0).value AS STRING) AS received_us,
        CAST(GET(FILTER(headers, h -> h.key = 'source'), 0).value AS STRING) AS came_from
    FROM log.kafka_records
),
timed AS (
    SELECT
        *,
        CASE
            WHEN TRY_CAST(received_us AS BIGINT) > 0 AND TRY_CAST(received_us AS BIGINT) < 253402300800000000
                THEN TIMESTAMP_MICROS(TRY_CAST(received_us AS BIGINT))
            ELSE timestamp
        END AS received_time
    FROM labelled
)
SELECT
    COALESCE(value, CAST('' AS BINARY)) AS body,
    `partition`,
    `offset`,
    COALESCE(CAST(ENCODE(CAST(key AS STRING), 'UTF-8') AS STRING), '') AS partition_key,
    timestamp AS enqueued_time,
    received_time,
    CASE WHEN came_from IN ('websocket', 'rest', 'import') THEN came_from ELSE 'websocket' END AS source,
    CAST(received_time AS DATE) AS received_date
FROM timed
