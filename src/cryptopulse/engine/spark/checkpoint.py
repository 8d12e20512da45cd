"""The folder in which a streaming query keeps its progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from pyspark.sql import SparkSession

Offsets: TypeAlias = Mapping[str, Mapping[str, int]]
"""Kafka's offsets as Spark writes them: topic → partition → next offset."""


class Checkpoint:
    """One query's checkpoint."""

    def __init__(self, session: SparkSession, url: str) -> None:
        """`url`: the query's own folder."""
        self._session = session
        self._url = url

    @cached_property
    def is_new(self) -> bool:
        """Whether it had no batch when this was first read."""
        if self._url.startswith("/Volumes/"):  # Unity Catalog shows its volumes as folders, not to Hadoop
            return not Path(self._url, "offsets").exists()
        jvm: Any = self._session.sparkContext._jvm
        path = jvm.org.apache.hadoop.fs.Path(f"{self._url}/offsets")
        return not path.getFileSystem(self._session.sparkContext._jsc.hadoopConfiguration()).exists(path)

    def offsets(self) -> Offsets:
        """The end offsets of the newest batch, finished or not, of a query that reads only Kafka; empty for none.

        The file of a batch has a line for the version, one for the batch, and one for each source.
        """
        if self.is_new:
            return {}
        batches = self._session.read.option("wholetext", True).text(f"{self._url}/offsets")
        rows = batches.selectExpr("CAST(_metadata.file_name AS STRING) AS name", "value").collect()
        numbered = [(int(row["name"]), row["value"]) for row in rows if row["name"].isdigit()]
        if not numbered:
            return {}
        found: Offsets = json.loads(max(numbered)[1].strip().splitlines()[-1])
        return found
