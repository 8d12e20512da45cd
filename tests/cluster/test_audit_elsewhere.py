"""A lake on S3 and on Azure is audited like a local one: what is gone from the storage is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from storage_servers import Storage, start_azurite, start_s3

from cryptopulse.lake.storage import file_system
from cryptopulse.lake.tables import BARS, BRONZE, SILVER, Table
from support import Lake, page
from support_audit import Audited, audit, intervals_of, market, matches

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", params=[start_s3, start_azurite], ids=["s3", "azure"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """Each of the servers."""
    server = request.param()
    yield server
    server.close()


@pytest.fixture
def lake(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """A lake on the server, in order, of two batches: trades with a hole, and the page that closes it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CRYPTOPULSE_STORAGE__OPTIONS", json.dumps(storage.options))
    made = Lake(storage.new_lake(), storage={"options": storage.options})
    trades = market()
    made.take_in(matches(trade for trade in trades if (trade.symbol, trade.trade_id) != ("BTC-USD", 150)))
    made.take_in([page(market(range(148, 153), ("BTC-USD",)))])
    yield made
    made.close()


def audited(lake: Lake) -> Audited:
    return audit(lake.settings.lake)


def storage_of(lake: Lake, table: Table) -> Any:
    """The storage with a table's folder as its root."""
    location = lake.settings.location
    return file_system(location, location.table_url(table))


def largest(lake: Lake, table: Table) -> str:
    """The largest live file of a table."""
    actions = pa.table(lake.delta(table).get_add_actions(flatten=True))
    return actions.sort_by([("size_bytes", "descending")])["path"][0].as_py()


def test_a_lake_in_order_is_complete(lake: Lake) -> None:
    found = audited(lake)
    assert (found.code, found.findings) == (0, [])
    assert found.product("BTC-USD")["healed"][0]["first_trade_id"] == 150
    assert (found.checked("ids"), found.checked("bars"), found.checked("messages")) == (240, 8, 240)


@pytest.mark.parametrize("table", [SILVER, BRONZE, BARS], ids=lambda table: table.name)
def test_an_object_that_is_gone_is_named(lake: Lake, table: Table) -> None:
    name = largest(lake, table)
    storage_of(lake, table).delete_file(name)
    found = audited(lake)
    assert found.code == 8
    assert (found.one("file_missing")["table"], found.one("file_missing")["file"]) == (table.qualified, name)
    if table is SILVER:
        lost = [("BTC-USD", 100, 149), ("BTC-USD", 151, 219), ("ETH-USD", 100, 219)]
        assert intervals_of(found.of("ids_lost")) == lost


@pytest.mark.parametrize("keep", [0.5, 1.0], ids=["half of it", "its size"])
def test_an_object_that_cannot_be_read_is_named(lake: Lake, keep: float) -> None:
    name = largest(lake, SILVER)
    root = storage_of(lake, SILVER)
    with root.open_input_stream(name) as stream:
        content = stream.read()
    with root.open_output_stream(name) as stream:
        stream.write(b"\xff" * int(len(content) * keep))
    found = audited(lake)
    assert found.code == 8
    assert (found.one("file_unreadable")["table"], found.one("file_unreadable")["file"]) == (SILVER.qualified, name)
