"""The core under what a Databricks Runtime has: it installs without changing that, and works by catalog name there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable
from kafka_broker import KafkaBroker
from requirements import ROOT, jars, missing

from cryptopulse.lake.tables import BRONZE, TABLES, Table
from support import Lake, Message, Trade, at, message, page

pytestmark = pytest.mark.cluster

RUNTIMES = {"16.4": "spark35", "17.3": "spark"}
"""Runtime → the jars of its Spark."""


class CatalogLake(Lake):
    """The tables in the warehouse of Spark's own catalog."""

    def delta(self, table: Table) -> DeltaTable:
        return DeltaTable(f"{self.path}/{table.schema}.db/{table.name}")


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if not (ROOT / f".venv-runtime-{request.param}" / ".installed").exists():
        missing(f"The environment .venv-runtime-{request.param}")
    return str(request.param)


@pytest.fixture(scope="module")
def python(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter over the runtime's packages, with what the bundle installs: as a cluster keeps its libraries."""
    folder = tmp_path_factory.mktemp(f"runtime-{runtime}")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    base = ROOT / f".venv-runtime-{runtime}"
    subprocess.run([base / "bin" / "python", "-m", "venv", folder / "venv"], check=True)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    (runtimes,) = base.glob("lib/python*/site-packages")
    (own / "runtime.pth").write_text(f"{runtimes}\n")
    made = folder / "venv" / "bin" / "python"
    install = [str(made), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = ROOT / "deploy" / "databricks" / "requirements.txt"
    subprocess.run([*install, "-r", str(requirements), str(wheel)], check=True)
    return made


def pins(runtime: str) -> dict[str, str]:
    lines = (ROOT / "tests" / "cluster" / "runtimes" / f"{runtime}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_installing_the_core_changes_nothing_that_the_runtime_has(runtime: str, python: Path) -> None:
    ask = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    found = subprocess.run([python, "-c", ask, *pins(runtime)], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == pins(runtime)
    (own,) = python.parents[1].glob("lib/python*/site-packages")
    listing = [str(python), "-m", "pip", "list", "--format=json", "--path", str(own)]
    added = subprocess.run(listing, capture_output=True, text=True, check=True)
    names = {one["name"].lower().replace("-", "_") for one in json.loads(added.stdout)}
    assert not names & set(pins(runtime))
    listed = (ROOT / "deploy" / "databricks" / "requirements.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("-", "_") for line in listed if "==" in line}
    assert "deltalake" in names
    assert names - {"pip", "setuptools"} <= pinned | {"cryptopulse"}  # nothing comes at a version that nobody chose


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path / "kafka", jars("kafka")) as started:
        yield started


def messages() -> list[Message]:
    """300 trades with two crashes and a hole, a page that shows why it is there, and a broken message."""
    fell = [Trade("BTC-USD", n, at(n * 1.5), f"{100 + n % 5}").match() for n in range(1, 201) if n != 66]
    calm = [Trade("ETH-USD", n, at(n * 1.5), "2000").match() for n in range(1, 101)]
    shown = page([Trade("BTC-USD", n, at(n * 1.5), f"{100 + n % 5}") for n in range(58, 75) if n != 66])
    return [*fell, *calm, shown, message(b"{broken")]


def test_trades_go_from_kafka_through_all_tables_of_a_catalog(
    runtime: str, python: Path, broker: KafkaBroker, tmp_path: Path
) -> None:
    """The session is the runtime's: what it needs is in the cluster's configuration, nothing in ours."""
    broker.create_topic("trades", partitions=2)
    log = {"url": f"kafka://{broker.bootstrap}/trades"}
    embedded = Lake(tmp_path / "embedded", log=log)
    embedded.take_in(messages())
    embedded.close()
    warehouse = tmp_path / "warehouse"
    cluster = {
        "spark.master": "local[2]",
        "spark.driver.memory": "2g",
        "spark.ui.enabled": "false",
        "spark.jars": ",".join(map(str, jars(RUNTIMES[runtime]))),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.warehouse.dir": str(warehouse),
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.session.timeZone": "Asia/Kathmandu",  # what a workspace may have; the statements need UTC
    }
    (tmp_path / "spark-defaults.conf").write_text("".join(f"{name} {value}\n" for name, value in cluster.items()))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "SPARK_CONF_DIR": str(tmp_path),
        "PYSPARK_PYTHON": str(python),
        "DATABRICKS_RUNTIME_VERSION": runtime,
        "CRYPTOPULSE_LAKE": str(tmp_path / "lake"),
        "CRYPTOPULSE_LOG__URL": log["url"],
        "CRYPTOPULSE_SPARK__CATALOG": "spark_catalog",
        "CRYPTOPULSE_SPARK__CHECKPOINTS": str(tmp_path / "checkpoints"),
    }
    command = [str(python), "-m", "cryptopulse", "process", "--engine", "spark", "--once"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=2400, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lake = CatalogLake(warehouse)
    assert all(lake.arrow(table).num_rows for table in TABLES)
    assert lake.contents() == embedded.contents()
    assert lake.arrow(BRONZE).num_rows == len(messages())
    lake.close()
