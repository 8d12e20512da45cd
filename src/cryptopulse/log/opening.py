"""Opens the log that the settings name. Only this module knows the kinds of log."""

from __future__ import annotations

from cryptopulse.folders import cannot_use
from cryptopulse.log import Log
from cryptopulse.settings import Settings


def open_log(settings: Settings) -> Log:
    """The log of these settings, created when missing.

    Raises ConfigurationError when the settings can't work or the embedded log's folder can't be written,
    Disconnected when no Kafka broker answers.
    """
    from cryptopulse.log.kafka_address import kafka_address  # noqa: PLC0415 - not for those who only read settings

    address = kafka_address(settings.log)
    if address is not None:
        from cryptopulse.log.kafka import KafkaLog  # noqa: PLC0415 - its client costs 40 ms and 8 MB

        return KafkaLog(address, settings.log.epoch, settings.log.kafka_partitions)
    from cryptopulse.log.sqlite import SqliteLog  # noqa: PLC0415 - numpy and Arrow

    path = settings.log_path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(path.parent, error) from error
    return SqliteLog(path, settings.log.size_max_mb << 20)
