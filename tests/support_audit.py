"""Lakes to be audited: made by the pipeline, then harmed by hand with deltalake, and audited by the command."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

from cryptopulse.cli import run
from cryptopulse.lake.tables import Table
from support import START, Lake, Message, Trade, at, message, text_of

PRODUCTS = ("BTC-USD", "ETH-USD")
FIRST, LAST = 100, 219
"""Ids of each product in `market`."""

Row = dict[str, Any]


def market(ids: Iterable[int] = range(FIRST, LAST + 1), products: Sequence[str] = PRODUCTS) -> list[Trade]:
    """A trade of each product for each id, two seconds apart from START on: four minutes, five of which make a slot."""
    return [
        Trade(
            product,
            number,
            at((number - FIRST) * 2),
            price=f"{100 + number % 7}.{number % 10}",
            size=f"0.{number}",
            side="BUY" if number % 3 else "SELL",
        )
        for number in ids
        for product in products
    ]


def matches(trades: Iterable[Trade]) -> list[Message]:
    """As the Exchange feed sends them."""
    return [trade.match() for trade in trades]


def heartbeat(product: str, last_trade_id: int, seconds: float) -> Message:
    """The Exchange feed's heartbeat, so many seconds after START."""
    body = {"type": "heartbeat", "product_id": product, "last_trade_id": last_trade_id, "sequence": 1}
    return message(json.dumps({**body, "time": text_of(at(seconds))}).encode(), key=product, received=at(seconds))


def fill(folder: Path, parts: Sequence[Sequence[Message]]) -> Path:
    """A lake in `folder`, each of `parts` processed by itself."""
    lake = Lake(folder)
    for part in parts:
        lake.take_in(part)
    lake.close()
    return folder


def copied(original: Path, folder: Path) -> Path:
    """A lake of one's own to harm."""
    shutil.copytree(original, folder)
    return folder


@dataclass(frozen=True)
class Audited:
    """What the command said."""

    code: int
    text: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.text)

    @property
    def findings(self) -> list[Row]:
        """What is wrong."""
        found: list[Row] = self.json["findings"]
        return found

    @property
    def kinds(self) -> list[str]:
        """The kinds of what is wrong, one for each finding."""
        return sorted(finding["kind"] for finding in self.findings)

    def of(self, kind: str) -> list[Row]:
        """The findings of one kind."""
        return [finding for finding in self.findings if finding["kind"] == kind]

    def one(self, kind: str) -> Row:
        """The only finding of a kind."""
        (found,) = self.of(kind)
        return found

    def product(self, symbol: str) -> Row:
        """A product's line of the ledger."""
        (found,) = [row for row in self.json["products"] if row["symbol"] == symbol]
        return found

    def checked(self, name: str) -> int:
        """How many of something were compared."""
        (found,) = [check["count"] for check in self.json["checks"] if check["name"] == name]
        return found


def audit(lake: Path | str, *arguments: str, as_text: bool = False) -> Audited:
    """Runs the command in this process; JSON unless `as_text`."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = run(["audit", "--lake", str(lake), *arguments, *([] if as_text else ["--json"])])
    return Audited(code, out.getvalue())


def place(lake: Path, table: Table) -> Path:
    """A table's folder."""
    return lake / table.schema / table.name


def rows(lake: Path, table: Table) -> pa.Table:
    """All rows of a table."""
    return DeltaTable(str(place(lake, table))).to_pyarrow_table()


def delete(lake: Path, table: Table, predicate: str) -> None:
    """Takes rows out of a table by deltalake; there must be some."""
    done = DeltaTable(str(place(lake, table))).delete(predicate)
    assert done["num_deleted_rows"]


def append(lake: Path, table: Table, more: pa.Table) -> None:
    """Adds rows to a table by deltalake."""
    write_deltalake(str(place(lake, table)), more, mode="append")


def overwrite(lake: Path, table: Table, instead: pa.Table) -> None:
    """Replaces all rows of a table by deltalake, and its columns when they differ."""
    write_deltalake(str(place(lake, table)), instead, mode="overwrite", schema_mode="overwrite")


def change(lake: Path, table: Table, where: Mapping[str, object], **values: object) -> None:
    """Gives other values to the one row that has those of `where`."""
    before = rows(lake, table)
    plain = before.to_pylist()
    (row,) = [row for row in plain if all(row[name] == value for name, value in where.items())]
    row.update(values)
    overwrite(lake, table, pa.Table.from_pylist(plain, schema=before.schema))


def files(lake: Path, table: Table) -> list[Path]:
    """The live Parquet files of a table, oldest first."""
    actions = pa.table(DeltaTable(str(place(lake, table))).get_add_actions(flatten=True))
    ordered = actions.sort_by("modification_time")
    return [place(lake, table) / name for name in ordered["path"].to_pylist()]


def create(lake: Path, schema: str, name: str, content: pa.Table, partition_by: str | None = None) -> None:
    """A table with this content, whether the pipeline makes it or not."""
    where = f"{lake}/{schema}/{name}"
    write_deltalake(where, content, mode="overwrite", schema_mode="overwrite", partition_by=partition_by)


def intervals_of(findings: Iterable[Row]) -> list[tuple[str, int, int]]:
    """(product, first id, last id) of findings about ids."""
    return sorted((row["symbol"], row["first_trade_id"], row["last_trade_id"]) for row in findings)


def offset_of(lake: Path, body: bytes, bronze: Table) -> int:
    """The offset of the first message with this body."""
    table = rows(lake, bronze)
    return min(table.filter(pc.equal(table["body"], pa.scalar(body, pa.binary())))["offset"].to_pylist())


def iso(when: datetime) -> str:
    """As JSON has it."""
    return when.isoformat()


def minute(number: int) -> datetime:
    """START and some minutes."""
    return at(number * 60)


assert START.minute % 5 == 0, "the market's minutes lie in one slot of five"
