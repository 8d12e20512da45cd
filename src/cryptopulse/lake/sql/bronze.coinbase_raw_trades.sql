-- Records of a Kafka topic, as Spark's source gives them -> raw messages.
-- What Kafka has no field for travels in headers: received_us (µs UTC as decimal digits) and source. A record without
-- them is another producer's: its own time counts, and it came over a WebSocket as far as anyone knows.
-- Run by engines that read Kafka by themselves; the embedded engine gets the same rows from `cryptopulse.log.kafka`.
WITH labelled AS (
    SELECT
        *,
        CAST(GET(FILTER(headers, h -> h.key = 'received_us'), 0).value AS STRING) AS received_us,
        CAST(GET(FILTER(headers, h -> h.key = 'source'), 0).value AS STRING) AS came_from
    FROM log.kafka_records
)
SELECT
    COALESCE(value, CAST('' AS BINARY)) AS body,
    `partition`,
    `offset`,
    COALESCE(CAST(key AS STRING), '') AS partition_key,
    timestamp AS enqueued_time,
    COALESCE(TIMESTAMP_MICROS(TRY_CAST(received_us AS BIGINT)), timestamp) AS received_time,
    COALESCE(came_from, 'websocket') AS source,
    CAST(COALESCE(TIMESTAMP_MICROS(TRY_CAST(received_us AS BIGINT)), timestamp) AS DATE) AS received_date
FROM labelled
