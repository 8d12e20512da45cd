"""A local Spark with Delta Lake and the Kafka source, for tests."""

from __future__ import annotations

import importlib.util
import os
import sys

from requirements import jars, missing


def spark_conf() -> dict[str, str]:
    """What `spark.conf` must hold so that Spark finds the jars and stays small; skips where Spark is missing."""
    if importlib.util.find_spec("pyspark") is None:
        missing("The package pyspark")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # a session that a test builds itself needs it as well
    return {
        "spark.jars": ",".join(map(str, jars(os.environ.get("CLUSTER_SPARK", "spark")))),
        "spark.master": "local[2]",
        "spark.ui.enabled": "false",
        "spark.driver.memory": "2g",
        "spark.sql.shuffle.partitions": "2",
    }
