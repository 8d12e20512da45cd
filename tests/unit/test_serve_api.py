"""The API over a real lake and a real socket: what it gives, page by page and format by format, and what it refuses."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cryptopulse
import dashboard_lake
from cryptopulse.lake.tables import ALERTS, BARS, COMPLETENESS, SILVER, STATS
from cryptopulse.serve.api.formats import FORMATS
from support import Lake
from support_processes import wait_until
from support_serve import Served

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
RESOURCES = ("products", "trades", "bars", "stats", "alerts", "completeness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = Lake(tmp_path_factory.mktemp("api") / "lake")
    dashboard_lake.fill(lake)
    lake.close()
    return lake.path


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with Served(folder) as served:
        yield served


@pytest.fixture(scope="module")
def lake(folder: Path) -> Lake:
    return Lake(folder)


def rows(served: Served, path: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = served.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def pages(served: Served, path: str, **parameters: Any) -> Iterator[httpx.Response]:
    """All pages, by the links that each gives."""
    answer = served.get(f"/api/{path}", params=parameters)
    while True:
        assert answer.status_code == 200, answer.text
        yield answer
        if "next" not in answer.links:
            return
        answer = served.get(answer.links["next"]["url"])


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table as JSON says it."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, datetime):
            found[name] = value.isoformat(timespec="microseconds").replace("+00:00", "Z")
        elif isinstance(value, Decimal):
            found[name] = f"{value.normalize():f}"
        else:
            found[name] = value
    return found


def in_csv(value: Any, text: str) -> bool:
    """Whether `text` is how CSV has a value of JSON."""
    if isinstance(value, float):
        return float(text) == value
    return text == ("" if value is None else str(value).lower() if isinstance(value, bool) else str(value))


@pytest.mark.parametrize(
    ("path", "table", "order"),
    [
        ("trades", SILVER, ("event_time", "symbol", "trade_id")),
        ("bars", BARS, ("window_start", "symbol")),
        ("stats", STATS, ("window_start", "symbol")),
        ("alerts", ALERTS, ("opened_at", "alert_id")),
        ("completeness", COMPLETENESS, ("window_start", "symbol")),
    ],
)
def test_all_pages_together_are_the_table_in_order(
    served: Served, lake: Lake, path: str, table: Any, order: tuple[str, ...]
) -> None:
    told = [row for page in pages(served, path, limit=777) for row in page.json()["data"]]
    stored = sorted(lake.arrow(table).to_pylist(), key=lambda row: tuple(row[name] for name in order))
    assert told
    wanted = [{name: value for name, value in plain(row).items() if name in told[0]} for row in stored]
    assert told == wanted
    assert set(table.arrow_schema.names) - set(told[0]) <= {"event_date", "window_date", "load_timestamp"}


def test_backwards_is_the_same_from_the_other_end(served: Served) -> None:
    forward = [row for page in pages(served, "bars", limit=100) for row in page.json()["data"]]
    backward = [row for page in pages(served, "bars", limit=300, order="desc") for row in page.json()["data"]]
    assert backward == forward[::-1]


@pytest.mark.parametrize("path", RESOURCES)
def test_every_format_says_the_same(served: Served, path: str) -> None:
    parameters = {"limit": 2} if path != "products" else {"limit": 1}
    page = served.get(f"/api/{path}", params=parameters)
    told = page.json()
    arrow = served.get(f"/api/{path}", params=parameters, headers={"Accept": ARROW})
    parquet = served.get(f"/api/{path}", params={**parameters, "format": "parquet"}, headers={"Accept": ARROW})
    assert (arrow.headers["content-type"], parquet.headers["content-type"]) == (ARROW, PARQUET)
    for table in (pa.ipc.open_stream(arrow.content).read_all(), pq.read_table(io.BytesIO(parquet.content))):
        assert [plain(row) for row in table.to_pylist()] == told["data"]
        assert table.schema.metadata[b"next"].decode() == told["next"]
    csv_page = served.get(f"/api/{path}", params=parameters, headers={"Accept": "text/csv"})
    assert csv_page.headers["content-type"].startswith("text/csv")
    lines = [*csv.DictReader(io.StringIO(csv_page.text))]
    assert [[*line] for line in lines] == [[*row] for row in told["data"]]
    for line, row in zip(lines, told["data"], strict=True):
        assert all(in_csv(value, line[name]) for name, value in row.items())
    assert f"cursor={told['next']}" in page.links["next"]["url"]
    assert "cursor" in csv_page.links["next"]["url"]
    assert "cursor" in arrow.links["next"]["url"]


def test_prices_are_exact_in_every_format(served: Served, lake: Lake) -> None:
    stored = {(row["symbol"], row["trade_id"]): row["price"] for row in lake.arrow(SILVER).to_pylist()}
    told = {(row["symbol"], row["trade_id"]): Decimal(row["price"]) for row in rows(served, "trades", limit=100_000)}
    assert told == stored
    content = served.get("/api/trades", params={"limit": 100_000, "format": "arrow"}).content
    table = pa.ipc.open_stream(content).read_all()
    assert table.schema.field("price").type == pa.decimal128(24, 12)
    assert {(row["symbol"], row["trade_id"]): row["price"] for row in table.to_pylist()} == stored


def test_a_time_range_includes_its_start_and_not_its_end(served: Served) -> None:
    every = rows(served, "bars", symbol="BTC-USD", limit=100_000)
    start, end = every[3]["window_start"], every[9]["window_start"]
    assert rows(served, "bars", symbol="BTC-USD", start=start, end=end) == every[3:9]
    shifted = "2026-07-07T14:00:00+02:00", "2026-07-07T14:30:00+02:00"
    utc = "2026-07-07T12:00", "2026-07-07T12:30:00Z"
    assert rows(served, "bars", start=shifted[0], end=shifted[1]) == rows(served, "bars", start=utc[0], end=utc[1])
    assert rows(served, "bars", start="2026-07-08", limit=1)[0]["window_start"] == "2026-07-08T00:00:00.000000Z"


def test_products_are_chosen_one_or_several(served: Served) -> None:
    assert {row["symbol"] for row in rows(served, "trades", symbol="ETH-USD", limit=5000)} == {"ETH-USD"}
    both = rows(served, "trades", symbol=["ETH-USD", "BTC-USD"], limit=5000)
    assert both == rows(served, "trades", limit=5000)
    assert [row["trade_id"] for row in rows(served, "trades", symbol="ETH-USD", first_id=1005, last_id=1007)] == [
        1005,
        1006,
        1007,
    ]


@pytest.mark.parametrize("grain", ["1s", "5m", "1h", "1d"])
def test_bars_of_other_grains_are_made_of_all_their_trades(served: Served, folder: Path, grain: str) -> None:
    told = [row for page in pages(served, "bars", grain=grain, limit=200) for row in page.json()["data"]]
    with cryptopulse.open(folder) as lake:
        assert told == [plain(row) for row in lake.bars(grain=grain)]
    assert sum(row["trade_count"] for row in told) == len(dashboard_lake.TRADES)


def test_activity_bars_are_those_of_python_page_by_page_and_backwards(served: Served, folder: Path) -> None:
    which: dict[str, Any] = {"by": "trade_imbalance", "size": "3"}
    told = [row for page in pages(served, "activity_bars", **which, limit=7) for row in page.json()["data"]]
    with cryptopulse.open(folder) as lake:
        assert told == [plain(row) for row in lake.activity_bars(by="trade_imbalance", size=3)]
    assert sum(row["trade_count"] for row in told) == len(dashboard_lake.TRADES)
    backwards = pages(served, "activity_bars", **which, order="desc", limit=11)
    assert [row for page in backwards for row in page.json()["data"]] == told[::-1]


@pytest.mark.parametrize("path", ["trades", "bars", "stats", "alerts", "completeness"])
def test_what_was_known_at_a_moment(served: Served, folder: Path, path: str) -> None:
    assert rows(served, path, as_of="2020-01-01") == []
    told = [row for page in pages(served, path, as_of="2100-01-01", limit=200) for row in page.json()["data"]]
    now = [row for page in pages(served, path, limit=200) for row in page.json()["data"]]
    assert [row | {"load_timestamp": 0} for row in told] == [row | {"load_timestamp": 0} for row in now]


def test_alerts_are_chosen_by_what_they_are(served: Served) -> None:
    every = rows(served, "alerts")
    assert {row["alert_type"] for row in every} == {"FLASH_CRASH", "PRICE_SURGE"}
    crashes = rows(served, "alerts", alert_type="FLASH_CRASH", state=["CLOSED"])
    assert crashes == [row for row in every if row["alert_type"] == "FLASH_CRASH" and row["state"] == "CLOSED"]
    assert rows(served, "alerts", rule="another") == []


def test_products_say_what_is_held(served: Served) -> None:
    assert rows(served, "products")[0] == {
        "symbol": "BTC-USD",
        "first_trade_id": 1000,
        "last_trade_id": 2249,
        "trades": 1247,
        "ids_not_held": 3,
        "venue": "coinbase",
        "base": "BTC",
        "quote": "USD",
        "market": "BTC/USD",
        "grade": "ids",
    }
    assert [page.json()["data"][0]["symbol"] for page in pages(served, "products", limit=1)] == ["BTC-USD", "ETH-USD"]


BAD = [
    ("bars?symbol=DOGE-EUR", 404, "unknown_product"),
    ("trades?symbol=BTC-USD&symbol=DOGE-EUR", 404, "unknown_product"),
    ("nothing", 404, "no_such_address"),
    ("bars/", 404, "no_such_address"),
    ("bars?start=yesterday", 422, "bad_parameter"),
    ("bars?start=1751882400", 422, "bad_parameter"),
    ("bars?start=2026-07-07T12:00:00 02:00", 422, "bad_parameter"),
    ("bars?start=2026-02-31", 400, "no_such_time"),
    ("bars?as_of=2026-02-31", 400, "no_such_time"),
    ("bars?as_of=yesterday", 422, "bad_parameter"),
    ("bars?start=2026-07-08&end=2026-07-07", 400, "empty_time"),
    ("bars?start=2026-07-07&end=2026-07-07", 400, "empty_time"),
    ("bars?limit=0", 422, "bad_parameter"),
    ("bars?limit=-1", 422, "bad_parameter"),
    ("bars?limit=100001", 422, "bad_parameter"),
    ("bars?limit=1e3", 422, "bad_parameter"),
    ("bars?limit=", 422, "bad_parameter"),
    ("bars?limit=1&limit=2", 422, "bad_parameter"),
    ("bars?cursor=abc", 422, "bad_parameter"),
    ("bars?cursor=abcdefghijklmnopqrst", 400, "bad_cursor"),
    ("bars?grain=7m", 422, "bad_parameter"),
    ("bars?by=volume&size=1", 422, "bad_parameter"),
    ("activity_bars", 422, "bad_parameter"),
    ("activity_bars?by=volume", 422, "bad_parameter"),
    ("activity_bars?by=weight&size=1", 422, "bad_parameter"),
    ("activity_bars?by=volume&size=-1", 422, "bad_parameter"),
    ("activity_bars?by=volume&size=1e3", 422, "bad_parameter"),
    ("activity_bars?by=volume&size=0.0", 400, "no_such_size"),
    ("activity_bars?by=trades&size=0.5", 400, "no_such_size"),
    ("bars?symbol=btc-usd", 422, "bad_parameter"),
    ("bars?symbol=BTC-USD,ETH-USD", 422, "bad_parameter"),
    ("bars?symbol=", 422, "bad_parameter"),
    ("bars?symbols=BTC-USD", 422, "bad_parameter"),
    ("bars?order=up", 422, "bad_parameter"),
    ("bars?format=xml", 406, "not_acceptable"),
    ("trades?first_id=99999999999999999999", 422, "bad_parameter"),
    ("alerts?severity=LOW", 422, "bad_parameter"),
    ("products?symbol=BTC-USD", 422, "bad_parameter"),
    ("events?kind=trades", 422, "bad_parameter"),
    ("events?symbol=DOGE-EUR", 404, "unknown_product"),
]


@pytest.mark.parametrize(("path", "status", "code"), BAD, ids=[path for path, _, _ in BAD])
def test_a_bad_request_is_told_what_is_wrong_with_it(served: Served, path: str, status: int, code: str) -> None:
    answer = served.get(f"/api/{path}")
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["detail"]
    assert "\n" not in problem["detail"]


def test_media_types_that_are_not_offered_are_refused(served: Served) -> None:
    assert served.get("/api/bars", headers={"Accept": "text/xml"}).status_code == 406
    assert served.get("/api/bars", headers={"Accept": "application/json;q=0, text/html"}).status_code == 406
    assert served.get("/api/bars", headers={"Accept": "text/html, */*;q=0.1"}).headers["content-type"].endswith("json")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_the_api_only_reads(served: Served, method: str) -> None:
    for path in RESOURCES:
        answer = served.client.request(method, f"/api/{path}")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
        assert answer.json()["code"] == "method_not_allowed"


def test_a_cursor_is_good_for_its_own_question_only(served: Served) -> None:
    cursor = served.get("/api/bars", params={"limit": 5}).json()["next"]
    assert rows(served, "bars", cursor=cursor, limit=1) == rows(served, "bars", limit=6)[5:]
    for path, others in (("bars", {"symbol": "BTC-USD"}), ("bars", {"grain": "5m"}), ("stats", {}), ("trades", {})):
        answer = served.get(f"/api/{path}", params={"cursor": cursor, **others})
        assert answer.json()["code"] == "bad_cursor"


INJECTIONS = [
    "BTC-USD' OR 1=1 --",
    "'; COPY (SELECT 1) TO '/tmp/x'; --",
    "BTC-USD') UNION SELECT * FROM read_text('/etc/passwd') --",
    "../../etc/passwd",
    "BTC-USD\x00",
    "ВТС-USD",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_parameter_is_a_way_to_other_files_or_to_write(served: Served, folder: Path, text: str) -> None:
    before = contents(folder)
    for path in RESOURCES[1:]:
        for name in ("symbol", "start", "end", "order", "limit", "cursor", "grain", "first_id", "severity"):
            answer = served.get(f"/api/{path}", params={name: text})
            assert answer.status_code == 422, (path, name)
            assert "root:" not in answer.text
    assert rows(served, "alerts", rule="x' OR '1'='1") == []
    assert rows(served, "alerts", rule="x') UNION SELECT 1 --") == []
    assert served.get(f"/api/{quote(text)}").status_code in (404, 400)
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_forged_cursor_says_no_sql(served: Served) -> None:
    real = served.get("/api/alerts", params={"limit": 1}).json()["next"]
    question, key = json.loads(base64.urlsafe_b64decode(real + "=" * (-len(real) % 4)))
    told = rows(served, "alerts")
    places: list[list[Any]] = [["x", key[1]], [key[0], 5], [key[0]], [key[0], "x' OR '1'='1"], [2**80, "x"], [1.5, "x"]]
    for forged in places:
        cursor = base64.urlsafe_b64encode(json.dumps([question, forged]).encode()).rstrip(b"=").decode()
        answer = served.get("/api/alerts", params={"cursor": cursor})
        assert answer.status_code == 400 or answer.json()["data"] == told[1:], forged


def test_a_question_that_takes_too_long_is_stopped(folder: Path) -> None:
    with Served(folder, query_timeout_s=0.001) as served:
        answer = served.get("/api/bars", params={"grain": "1s", "limit": 100_000})
        assert (answer.status_code, answer.json()["code"]) == (504, "too_slow")


def test_too_many_questions_at_once_are_told_to_come_back_and_the_others_are_answered(folder: Path) -> None:
    """Forty at once, where one is worked on and four may wait."""
    with Served(folder, queries_at_once=1) as served:
        barrier, found = threading.Barrier(40), []

        def ask() -> None:
            with served.browser() as browser:
                barrier.wait()
                found.append(browser.get("/api/trades", params={"limit": 100_000}))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy = [answer for answer in found if answer.status_code == 503]
        assert {answer.status_code for answer in found} == {200, 503}
        assert all(answer.headers["retry-after"] == "1" and answer.json()["code"] == "busy" for answer in busy)
        assert served.get("/api/trades").status_code == 200
        assert f"cryptopulse_api_questions_refused_total {len(busy)}.0" in served.get("/metrics").text


def test_a_lake_that_is_not_there_has_no_rows_and_one_that_comes_is_seen(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "later")
    with Served(lake.path) as served:
        for path in RESOURCES:
            assert rows(served, path) == []
        assert served.get("/api/bars?symbol=BTC-USD").status_code == 404
        dashboard_lake.fill(lake)
        wait_until(lambda: served.get("/api/bars?symbol=BTC-USD").status_code == 200, "the product is known")
        assert len(rows(served, "bars", symbol="BTC-USD", limit=5)) == 5
    lake.close()


def test_pages_that_nobody_reads_are_bounded_and_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptopulse.serve.api.service._SENDING_MAX", 1000)
    with Served(folder) as served, served.browser() as slow:
        service = served.app.state.events._service
        with slow.stream("GET", "/api/trades", params={"limit": 100_000, "format": "arrow"}):
            pass  # and is gone
        wait_until(lambda: service._sending == 0, "it is let go")
        service.reserve(2000)
        refused = served.get("/api/bars")
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "busy", "5")
        service.release(2000)
        assert served.get("/api/bars").status_code == 200


def test_a_lake_that_is_gone_is_503_and_not_the_end_of_its_rows(tmp_path: Path, folder: Path) -> None:
    here, away = tmp_path / "lake", tmp_path / "away"
    shutil.copytree(folder, here)
    with Served(here) as served:
        first = served.get("/api/trades", params={"limit": 5})
        whole = {path: rows(served, path) for path in RESOURCES}
        here.rename(away)
        following = first.headers["link"].partition("<")[2].partition(">")[0]
        wait_until(lambda: served.get("/api/products").status_code == 503, "they are known for a second")
        for path in (following, *(f"/api/{path}" for path in RESOURCES)):
            answer = served.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "lake_unreachable")
            assert "retry-after" in answer.headers
        assert served.get("/readyz").status_code == 503
        away.rename(here)
        assert {path: rows(served, path) for path in RESOURCES} == whole


def test_a_lake_that_let_no_day_go_has_no_row_of_retention(served: Served) -> None:
    assert served.get("/api/retention").json()["data"] == []


@pytest.mark.parametrize("known", RESOURCES)
def test_one_table_that_was_there_is_enough_to_know_that_the_lake_is_gone(
    tmp_path: Path, folder: Path, known: str
) -> None:
    """As it was: each table was known by itself, so that those nobody had asked for yet were taken to be empty."""
    here = tmp_path / "lake"
    shutil.copytree(folder, here)
    with Served(here) as served:
        assert rows(served, known, limit=1)
        here.rename(tmp_path / "away")
        wait_until(lambda: served.get("/api/products").status_code == 503, "they are known for a second")
        for path in (*RESOURCES, "trades?symbol=BTC-USD", "bars?symbol=NO-SUCH", "bars?grain=1s"):
            answer = served.get(f"/api/{path}")
            assert (answer.status_code, answer.json()["code"]) == (503, "lake_unreachable"), path


def test_a_cursor_is_no_end_of_rows_for_a_server_that_started_without_the_lake(tmp_path: Path, folder: Path) -> None:
    asked = [*(f"/api/{path}?limit=1" for path in RESOURCES), "/api/trades?symbol=BTC-USD&limit=1"]
    with Served(folder) as served:
        following = [served.get(path).headers["link"].partition("<")[2].partition(">")[0] for path in asked]
    with Served(folder) as served:
        assert all(served.get(path).status_code == 200 for path in following)
    with Served(tmp_path / "lake") as served:
        for path in following:
            answer = served.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "lake_unreachable"), path
            assert "retry-after" in answer.headers
        assert rows(served, "trades") == []


def test_a_damaged_table_is_told_in_a_sentence(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "damaged")
    dashboard_lake.fill(lake)
    lake.close()
    for file in lake.folder(STATS).rglob("*.parquet"):
        file.write_bytes(b"PAR1 nothing of the kind PAR1")
    with Served(lake.path) as served:
        answer = served.get("/api/stats")
        assert (answer.status_code, answer.json()["code"]) == (503, "lake_unusable")
        assert "gold.dm_crypto_price_stats" in answer.json()["detail"]
        assert served.get("/api/bars").status_code == 200


def test_the_document_tells_of_all_that_is_served(served: Served) -> None:
    document = served.get("/api/openapi.json").json()
    assert set(document["paths"]) == {f"/{path}" for path in (*RESOURCES, "activity_bars", "retention", "events")}
    pages_of = document["paths"]["/bars"]["get"]["responses"]["200"]["content"]
    assert set(pages_of) == {form.media_type for form in FORMATS.values()}
    for operation in (path["get"] for path in document["paths"].values()):
        assert operation["summary"]
        assert operation["description"]
        assert all(parameter.get("description") for parameter in operation["parameters"])
        assert {"200", "401", "404", "422", "503", "504"} <= set(operation["responses"])
    assert "securitySchemes" not in document["components"]


def test_a_page_reads_what_duckdb_reads(served: Served, folder: Path) -> None:
    """Counted by another program: DuckDB over the files of the table."""
    files = f"{folder}/gold/dm_trade_bars/**/*.parquet"
    told = sum(len(page.json()["data"]) for page in pages(served, "bars", limit=50))
    found = duckdb.sql(f"SELECT count(DISTINCT (symbol, window_start)) FROM read_parquet('{files}')").fetchall()
    assert found == [(told,)]
