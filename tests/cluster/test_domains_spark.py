"""The extremes of every field are carried by every statement on Spark as well, and parsed by its workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from spark_session import spark_conf

from cryptopulse.engine.parse import PARSED_SCHEMA, parse, parse_batches
from cryptopulse.settings import Settings, load_settings
from support import Trade, at, bronze, page
from support_bad_messages import BAD
from support_domains import EXTREME_VALUES, EXTREMES, assert_carried

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

pytestmark = pytest.mark.cluster


class Spark:
    """Spark over Arrow tables, in this process and its workers."""

    def __init__(self, settings: Settings) -> None:
        from cryptopulse.engine.spark.session import SparkSql, spark_session

        self.session = spark_session(settings)
        self._sql = SparkSql(self.session)

    def frame(self, rows: pa.Table) -> DataFrame:
        if hasattr(self.session.range(0), "toArrow"):  # from Spark 4.0 on
            return self.session.createDataFrame(rows)
        from pyspark.sql.pandas.types import from_arrow_schema

        return self.session.createDataFrame(rows.to_pylist(), from_arrow_schema(rows.schema))

    def derive(self, name: str, inputs: Mapping[str, pa.Table]) -> pa.Table:
        return self._sql.derive(name, {of: self.frame(rows) for of, rows in inputs.items()})

    def parsed(self, messages: pa.Table) -> pa.Table:
        from pyspark.sql.pandas.types import from_arrow_schema

        from cryptopulse.engine.spark.session import collected

        return collected(self.frame(messages).mapInArrow(parse_batches, from_arrow_schema(PARSED_SCHEMA)))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    folder = tmp_path_factory.mktemp("domains")
    conf = {**spark_conf(), "spark.sql.warehouse.dir": str(folder)}
    made = Spark(load_settings(lake=folder / "lake", processing={"engine": "spark"}, spark={"conf": conf}))
    yield made
    made.session.stop()


@pytest.fixture(params=[True, False], ids=["compiled", "interpreted"])
def spark(started: Spark, request: pytest.FixtureRequest) -> Spark:
    from cryptopulse.engine.spark.session import generate_code

    generate_code(started.session, wanted=request.param)
    return started


def test_all_extremes_are_carried_by_every_statement(spark: Spark) -> None:
    assert_carried(spark, EXTREMES)


def test_a_busy_minute_of_the_dearest_trades_is_carried(spark: Spark) -> None:
    assert_carried(spark, [Trade("BTC-USD", n, at(n / 100), *EXTREME_VALUES[n % 7]) for n in range(1, 501)])


def test_sparks_workers_parse_as_this_process_does(spark: Spark) -> None:
    pages = [page([trade]) for trade in EXTREMES]
    bad = [one for one, _ in BAD.values() if len(one["body"]) < 1_000_000]
    messages = bronze([*bad, *pages, *(trade.match() for trade in EXTREMES)])
    order = [("offset", "ascending")]
    assert spark.parsed(messages).sort_by(order).to_pylist() == parse(messages).to_pylist()
