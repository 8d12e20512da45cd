"""A local Spark with Delta Lake and the Kafka source, for tests."""

from __future__ import annotations

import importlib.util

from requirements import jars, missing


def spark_conf() -> dict[str, str]:
    """What `spark.conf` must hold so that Spark finds the jars and stays small; skips where Spark is missing."""
    if importlib.util.find_spec("pyspark") is None:
        missing("The package pyspark")
    return {
        "spark.jars": ",".join(map(str, jars("spark"))),
        "spark.master": "local[2]",
        "spark.ui.enabled": "false",
        "spark.driver.memory": "2g",
        "spark.sql.shuffle.partitions": "2",
    }
