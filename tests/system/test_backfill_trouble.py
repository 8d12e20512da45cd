"""`cryptopulse backfill` while REST is not well: whatever it answers, what can be had comes into the tables."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptopulse import cli
from cryptopulse.errors import UnknownProduct
from cryptopulse.healing.backfill import Backfill
from cryptopulse.lake.tables import QUARANTINE
from cryptopulse.log.opening import open_log
from cryptopulse.settings import load_settings
from support import orders, some
from support_audit import audit
from support_past import Past
from support_processes import Exchange, Tables

CASES = int(os.environ.pop("CRYPTOPULSE_TEST_CASES", "10"))  # no setting of the program, which would refuse it
WEB_PAGE = b"<!DOCTYPE html><html><title>Attention required</title></html>"
DELISTED = {"status": 400, "body": b'{"message":"Not allowed for delisted products"}', "times": -1}

TROUBLES: list[dict[str, Any]] = [
    {"status": 403, "body": WEB_PAGE},
    {"status": 408},
    {"status": 302, "headers": {"location": "https://sorry.example.net/"}},
    {"status": 425},
    {"status": 429, "headers": {"retry-after": "0"}},
    {"status": 503, "headers": {"retry-after": "soon"}},
    {"status": 530, "body": b"error code: 1033"},
    {"status": 999},
    {"status": 400, "body": WEB_PAGE},
    {"status": 404, "body": WEB_PAGE},
    {"body": WEB_PAGE},
    {"body": b""},
    {"body": b'{"message":"degraded"}'},
    {"body": b"[" * 5_000},
    {"body": b"\xff\xfe\x00"},
    {"body": b"[1,2,3]"},
    {"body": b"[]"},
    {"headers": {"content-encoding": "gzip"}},
    {"headers": {"content-encoding": "gzip"}, "body": gzip.compress(b"[{}")},
    {"headers": {"content-encoding": "deflate"}},
    {"headers": {"content-length": "many"}},
    {"headers": {"content-length": "5"}},
    {"reversed": True},
    {"truncated": True},
    {"reset": True},
]

BAD_ROWS: list[Any] = [
    {"time": None},
    {"time": "2026-07-07T12:00:60Z"},
    {"time": "2026-07-07T12:00:05"},
    {"time": "2026-02-30T12:00:05Z"},
    {"price": None},
    {"price": "NaN"},
    {"size": "-1"},
    {"side": "both"},
    {"trade_id": None},
    {"trade_id": "x"},
    {"trade_id": -1},
    {},
    None,
    7,
    "trade",
    [],
]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Backfills = Callable[..., Done]


@pytest.fixture
def run_backfill(in_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Backfills:
    """Calls the command in this process."""
    monkeypatch.setenv("CRYPTOPULSE_FEED__BACKOFF_MAX_S", "0.05")

    def run_backfill(exchange: Past, *products: str) -> Done:
        given = ("--from", exchange.start.isoformat(), "--lake", "lake", "--rest-url", exchange.url, "--json")
        capsys.readouterr()
        code = cli.run(["backfill", *products, *given])
        done = Done(code, *capsys.readouterr())
        assert "Traceback" not in done.err
        assert "unexpected" not in done.err
        return done

    return run_backfill


def of(exchange: Exchange, *products: str) -> dict[tuple[str, int], int]:
    return {trade: 1 for trade in exchange.published() if trade[0] in products}


def test_whatever_may_pass_is_waited_for(past: Past, run_backfill: Backfills) -> None:
    troubles = [answer for start in range(0, len(TROUBLES), 6) for answer in (*TROUBLES[start : start + 6], {})]
    past.orders(orders(*troubles))
    done = run_backfill(past, *past.products)
    assert done.code == 0, done.err
    assert sum(one["fetched"] for one in json.loads(done.out)) == len(past.published())
    assert sum(one["absent"] for one in json.loads(done.out)) == 0
    assert Tables(Path("lake")).ids() == of(past, *past.products)
    assert "302 and points to https://sorry.example.net/" in done.err


def test_a_product_that_the_exchange_refuses_is_said_once_and_the_others_are_fetched(
    past: Past, run_backfill: Backfills
) -> None:
    exchange = past
    refused, other = exchange.products
    exchange.orders(orders({**DELISTED, "path": f"/{refused}/trades"}))
    done = run_backfill(exchange, refused, "NO-SUCH", other)
    assert done.code == 2
    first, second = done.err.splitlines()
    assert first.startswith("cryptopulse: ")
    assert f"400 (Not allowed for delisted products): it refuses {refused}." in first
    assert "NO-SUCH is no product there" in second
    assert [one["product"] for one in json.loads(done.out)] == [refused, "NO-SUCH", other]
    assert Tables(Path("lake")).ids() == of(exchange, other)


@pytest.mark.parametrize("pages", some(1, [38, 0]))
def test_a_product_that_fails_for_ever_holds_up_no_other_and_goes_on_later(
    long_past: Past, run_backfill: Backfills, pages: int
) -> None:
    exchange = long_past
    failing, other = exchange.products
    path = f"/{failing}/trades"
    exchange.orders(orders({"path": path, "times": pages}, {"path": path, "times": -1, "status": 503}))
    done = run_backfill(exchange, failing, other)
    assert done.code == 9
    (told,) = [line for line in done.err.splitlines() if line.startswith("cryptopulse: ")]
    assert f"cryptopulse: {failing}: the exchange gave no page of its trades in 20 attempts" in told
    assert "answered 503" in told
    tables = Tables(Path("lake"))
    stored = set(tables.ids())
    assert stored >= set(of(exchange, other))
    if pages == 38:  # 30 of which find where its past begins
        assert len(stored - set(of(exchange, other))) > 1_000
    exchange.orders(orders())
    again = run_backfill(exchange, failing, other)
    assert again.code == 0, again.err
    assert tables.ids() == of(exchange, failing, other)


def test_rows_that_cant_be_read_are_quarantined_and_all_others_are_stored(past: Past, run_backfill: Backfills) -> None:
    exchange = past
    broken: dict[str, dict[int, Any]] = {}
    for product, figures in exchange.ledger()["products"].items():
        first, last = figures["first_trade_id"], figures["last_trade_id"]
        rows = {row["trade_id"]: row for row in exchange.rows(product, first, last)}
        # At both ends, alone, beside each other, and where pages meet.
        places = [first, first + 1, last, last - 1, *range(last - 1_010, last - 990), *range(first + 7, last, 501)]
        broken[product] = {
            trade_id: rows[trade_id] | bad if isinstance(bad, dict) and bad else bad
            for trade_id, bad in zip(places, BAD_ROWS * len(places), strict=False)
        }
    exchange.orders(orders(rows=broken))
    done = run_backfill(exchange, *exchange.products)
    assert done.code == 0, done.err
    bad = {(product, trade_id) for product, rows in broken.items() for trade_id in rows}
    tables = Tables(Path("lake"))
    expected = {trade: 1 for trade in exchange.published() if trade not in bad}
    assert tables.ids() == expected
    assert set(tables.read(QUARANTINE)["source"].to_pylist()) == {"rest"}
    assert sum(one["absent"] for one in json.loads(done.out)) == 0
    exchange.orders(orders())  # the exchange has mended its rows
    again = run_backfill(exchange, *exchange.products)
    assert again.code == 0, again.err
    assert tables.ids() == of(exchange, *exchange.products)
    found = audit("lake")
    assert found.code == 0, found.text


_HEADERS = st.sampled_from(
    [
        ("retry-after", "0"),
        ("retry-after", "x"),
        ("location", "https://[/"),
        ("location", "/elsewhere"),
        ("content-type", "text/html; charset=klingon"),
        ("content-encoding", "gzip"),
        ("content-encoding", "br"),
        ("cb-after", "-9"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
    ]
)
_ODD = st.fixed_dictionaries(
    {"status": st.integers(200, 999)},
    optional={
        "headers": st.lists(_HEADERS, max_size=3).map(dict),
        "body": st.sampled_from([WEB_PAGE, b"", b"null", b"[", b'{"message":"no"}', b"[[]]", b'[{"id":1}]'])
        | st.binary(min_size=1, max_size=50).filter(lambda body: body.strip() != b"[]"),
        "truncated": st.booleans(),
        "reset": st.booleans(),
    },
)
_ANSWERS = st.lists(st.sampled_from([*TROUBLES, {}]) | _ODD, max_size=12)


@given(answers=_ANSWERS, bad=st.dictionaries(st.floats(0, 1), st.sampled_from(BAD_ROWS), max_size=6))
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_however_rest_misbehaves_every_trade_comes_once(
    past: Past, in_process: None, answers: list[dict[str, Any]], bad: dict[float, Any]
) -> None:
    product = past.products[0]
    figures = past.ledger()["products"][product]
    first, last = figures["first_trade_id"], figures["last_trade_id"]
    rows = {first + round(place * (last - first)): row for place, row in bad.items()}
    past.orders(orders(*answers, rows={product: rows}))
    with tempfile.TemporaryDirectory() as folder:
        lake = Path(folder) / "lake"
        feed = {"rest_url": past.url, "backoff_max_s": 0.01}
        log = open_log(chosen := load_settings(lake=lake, feed=feed))
        try:
            while is_refused(Backfill(chosen, log), product, past.start):
                """What the exchange may have meant; the same command goes on."""
        finally:
            log.close()
        assert Tables(lake).ids() == {(product, n): 1 for n in range(first, last + 1) if n not in rows}


def is_refused(work: Backfill, product: str, start: datetime) -> bool:
    try:
        asyncio.run(work.run(product, start, None, lambda _plan: None, lambda _done, _all: None))
    except UnknownProduct:
        return True
    work.store()
    return False
