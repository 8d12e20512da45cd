"""Every kind of statement that DuckDB has, alone and within others: what reads is answered, nothing writes.

Each is tried twice: as people send it, where it is let through by what it does, and past that check in the database
itself, which can write nothing whatever it is told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import duckdb
import pytest

import cryptopulse
from cryptopulse import cli
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake import dataset
from cryptopulse.lake.database import Database, Limits
from cryptopulse.lake.follower import NewestVersions
from cryptopulse.lake.sql_rows import sandbox
from cryptopulse.lake.tables import BARS
from support import START, Lake, Trade

BARS_ROWS = 2
LIVE = "{live}"
"""Stands for a file of gold.dm_trade_bars, by the name that it has in a statement's database; {path}: on the disk."""
COPY = f"COPY (SELECT 1 AS x) TO '{LIVE}' (FORMAT parquet, USE_TMP_FILE false)"

READS = [
    "SELECT count(*) FROM gold.dm_trade_bars",
    "FROM gold.dm_trade_bars",
    "TABLE gold.dm_trade_bars",
    "VALUES (1), (2)",
    "-- a comment\n/* another */ SELECT 1 ;",
    "SELECT 1 UNION ALL SELECT 2 EXCEPT SELECT 3",
    "WITH a AS (FROM gold.dm_trade_bars), b AS MATERIALIZED (FROM a) FROM b",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) FROM n",
    "SELECT * FROM range(3), unnest([1, 2]), generate_series(1, 2)",
    "PIVOT (SELECT symbol, trade_count FROM gold.dm_trade_bars) ON symbol IN ('BTC-USD') USING sum(trade_count)",
    "UNPIVOT (SELECT open, high FROM gold.dm_trade_bars) ON open, high",
    "FROM query_table('gold.dm_' || 'trade_bars')",
    "DESCRIBE gold.dm_trade_bars",
    "DESCRIBE SELECT 1",
    "SUMMARIZE gold.dm_trade_bars",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "FROM (DESCRIBE gold.dm_trade_bars)",
    "SELECT table_name FROM information_schema.tables",
    "SELECT name FROM duckdb_settings()",
    "EXPLAIN FROM gold.dm_trade_bars",
    "EXPLAIN ANALYZE SELECT count(*) FROM gold.dm_trade_bars",
    "EXPLAIN (FORMAT json) SELECT 1",
    "EXPLAIN (ANALYZE, FORMAT json) SELECT 1",
    "EXPLAIN (SELECT 1)",
    "EXPLAIN DESCRIBE gold.dm_trade_bars",
    "EXPLAIN ANALYZE SHOW TABLES",
    "EXPLAIN (ANALYZE, FORMAT json) SUMMARIZE gold.dm_trade_bars",
]
WRITES = {
    "ALTER": "ALTER VIEW gold.dm_trade_bars RENAME TO gone",
    "ALTER DATABASE": "ALTER DATABASE memory SET ALIAS TO other",
    "ANALYZE": "ANALYZE",
    "ATTACH": "ATTACH ':memory:' AS gold",
    "CALL": "CALL pragma_version()",
    "CONNECT": "CONNECT",
    "CONNECT by name": "CONNECT gold",
    "COPY": COPY,
    "COPY by path": "COPY (SELECT 1 AS x) TO '{path}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY elsewhere": "COPY (SELECT 1) TO 'out.csv'",
    "COPY FROM": f"COPY gold.dm_trade_bars FROM '{LIVE}'",
    "COPY_DATABASE": "COPY FROM DATABASE memory TO memory",
    "CREATE SECRET": "CREATE SECRET s (TYPE s3)",
    "CREATE PERSISTENT SECRET": "CREATE PERSISTENT SECRET s (TYPE http)",
    "CREATE SCHEMA": "CREATE SCHEMA s",
    "CREATE INDEX": "CREATE INDEX i ON gold.dm_trade_bars (symbol)",
    "CREATE TABLE": "CREATE TABLE gold.t AS SELECT 1 AS x",
    "CREATE VIEW": "CREATE OR REPLACE VIEW gold.dm_trade_bars AS SELECT 1 AS x",
    "CREATE TEMP VIEW": "CREATE TEMP VIEW dm_trade_bars AS SELECT 1 AS x",
    "CREATE_FUNC": "CREATE OR REPLACE MACRO count(x) AS 1",
    "CREATE TYPE": "CREATE TYPE colour AS ENUM ('red')",
    "CREATE SEQUENCE": "CREATE SEQUENCE s",
    "DELETE": "DELETE FROM gold.dm_trade_bars",
    "TRUNCATE": "TRUNCATE gold.dm_trade_bars",
    "DETACH": "DETACH memory",
    "DISCONNECT": "DISCONNECT",
    "DROP": "DROP VIEW gold.dm_trade_bars",
    "EXPORT": "EXPORT DATABASE 'out'",
    "IMPORT": "IMPORT DATABASE 'out'",
    "INSERT": "INSERT INTO gold.dm_trade_bars (symbol) VALUES ('X-USD')",
    "INSTALL": "INSTALL httpfs",
    "LOAD": "LOAD parquet",
    "MERGE_INTO": "MERGE INTO gold.dm_trade_bars AS t USING (SELECT 1 AS x) AS s ON true WHEN MATCHED THEN DELETE",
    "PIVOT that asks for its columns": "PIVOT gold.dm_trade_bars ON symbol USING count(*)",
    "PRAGMA": "PRAGMA enable_profiling",
    "PREPARE": "PREPARE p AS SELECT 1",
    "EXECUTE": "EXECUTE p",
    "DEALLOCATE": "DEALLOCATE p",
    "SET": "SET memory_limit = '1TB'",
    "SET VARIABLE": "SET VARIABLE x = 1",
    "RESET": "RESET threads",
    "USE": "USE gold",
    "TRANSACTION": "BEGIN TRANSACTION",
    "COMMIT": "COMMIT",
    "UPDATE": "UPDATE gold.dm_trade_bars SET symbol = 'X-USD'",
    "UPDATE EXTENSIONS": "UPDATE EXTENSIONS",
    "VACUUM": "VACUUM",
    "CHECKPOINT": "CHECKPOINT",
    "FORCE CHECKPOINT": "FORCE CHECKPOINT",
    "COMMENT": "COMMENT ON VIEW gold.dm_trade_bars IS 'x'",
    "CTE with COPY": f"WITH a AS ({COPY}) SELECT 1",
    "CTE with INSERT": "WITH a AS (INSERT INTO gold.dm_trade_bars (symbol) VALUES ('X') RETURNING *) FROM a",
    "CTE with UPDATE": "WITH a AS (UPDATE gold.dm_trade_bars SET symbol = 'X' RETURNING *) FROM a",
    "CTE with DELETE": "WITH a AS (DELETE FROM gold.dm_trade_bars RETURNING *) FROM a",
    "CTE deep within": f"SELECT * FROM (SELECT (WITH a AS ({COPY}) SELECT 1)) UNION ALL SELECT 2",
    "query() with COPY": "FROM query('WITH a AS (COPY (SELECT 1) TO ''out.csv'') SELECT 1')",
    "serialized SQL": "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "several": f"SELECT 1; {COPY}",
    "several, the last": f"{COPY}; SELECT 1",
    "EXPLAIN of several": f"EXPLAIN SELECT 1; {COPY}",
    "a file by path": "FROM '{path}'",
    "read_parquet": f"FROM read_parquet('{LIVE}')",
    "read_csv": "FROM read_csv('/etc/passwd')",
    "read_text": "FROM read_text('/etc/hostname')",
    "read_blob": "FROM read_blob('{path}')",
    "sniff_csv": "FROM sniff_csv('/etc/passwd')",
    "read_duckdb": "FROM read_duckdb('/etc/passwd')",
    "glob": "FROM glob('/etc/*')",
    "parquet_metadata": f"FROM parquet_metadata('{LIVE}')",
    "an address in memory": "FROM arrow_scan(1::POINTER, 2::POINTER, 3::POINTER)",
    "a variable of Python": "FROM reader",
    "a log in files": "FROM enable_logging(storage = 'file', storage_path = 'out')",
    "a profile in a file": "FROM enable_profiling(save_location = 'out.json')",
}
WRAPPED = ("{}", "EXPLAIN {}", "EXPLAIN ANALYZE {}", "EXPLAIN (ANALYZE, FORMAT json) {}", "EXPLAIN --\n ANALYZE {}")
"""How a statement may stand within another."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("sql") / "lake")
    made.take_in([Trade(symbol, 1, START).match() for symbol in ("BTC-USD", "ETH-USD")])
    yield made
    made.close()


@pytest.fixture(scope="module")
def reader(lake: Lake) -> Iterator[dataset.Lake]:
    with cryptopulse.open(lake.path) as reader:
        yield reader


def _sandbox(lake: Lake) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """The database of one statement over the bars."""
    location = lake.settings.location
    return sandbox(location, [NewestVersions(location).files(BARS)], Limits())


def _with_file(lake: Lake, text: str) -> str:
    """The text, with the file of the bars in it."""
    (path,) = NewestVersions(lake.settings.location).files(BARS).names
    name = f"lake://{BARS.qualified}/{Path(path).relative_to(lake.folder(BARS))}"
    return text.replace(LIVE, name).replace("{path}", path)


@pytest.fixture(autouse=True)
def untouched(lake: Lake, reader: dataset.Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file was changed, added or taken away anywhere near, and the next statement sees the table as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where DuckDB keeps secrets and extensions

    def files() -> dict[Path, bytes]:
        found = (path for folder in (lake.path, tmp_path) for path in folder.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).digest() for path in found}

    before = files()
    yield
    assert files() == before
    assert reader.sql("FROM gold.dm_trade_bars").count() == BARS_ROWS


def test_what_only_reads_is_answered(reader: dataset.Lake) -> None:
    wrong = {}
    for text in READS:
        try:
            assert reader.sql(text).arrow().num_columns
        except Exception as error:  # noqa: BLE001 - whatever it is, with its statement
            wrong[text] = error
    assert not wrong


def test_what_does_more_is_refused_in_one_line(lake: Lake, reader: dataset.Lake) -> None:
    wrong = {}
    for kind, template in WRITES.items():
        text = _with_file(lake, template)
        for within in (*WRAPPED, "PREPARE p AS {}"):
            try:
                found: object = reader.sql(within.replace("{}", text)).arrow()
            except ConfigurationError as error:
                found = error
            if not isinstance(found, ConfigurationError) or not re.fullmatch(r"SQL: .*", str(found)):
                wrong[kind, within] = found
    assert not wrong


EXECUTED = ("{}", "EXPLAIN ANALYZE {}", "PREPARE p AS {}; EXECUTE p")
"""Of the ways to stand within another those in which a statement is carried out, each in one form."""


@pytest.mark.parametrize("ways", [EXECUTED, pytest.param(WRAPPED, marks=pytest.mark.long)], ids=len)
@pytest.mark.parametrize("kind", WRITES)
def test_past_the_check_the_database_itself_writes_nothing(lake: Lake, kind: str, ways: tuple[str, ...]) -> None:
    text = _with_file(lake, WRITES[kind])
    for within in ways:
        with _sandbox(lake) as connection, suppress(duckdb.Error):
            for one in connection.extract_statements(within.replace("{}", text)):
                connection.execute(one)


@pytest.mark.parametrize("kind", ["COPY", "CTE with COPY", "COPY by path", "COPY elsewhere", "EXPORT", "read_text"])
def test_the_database_says_no_by_itself(lake: Lake, kind: str) -> None:
    with _sandbox(lake) as connection, pytest.raises(duckdb.Error):
        connection.execute(_with_file(lake, WRITES[kind])).fetchall()


def test_every_kind_that_duckdb_has_is_among_them() -> None:
    tried: set[str] = set()
    for text in [*READS, *WRITES.values()]:
        with suppress(duckdb.ParserException, ValueError):  # some kinds have no name in Python
            tried |= {one.type.name for one in duckdb.extract_statements(text)}
    of_no_text = {"INVALID", "LOGICAL_PLAN", "RELATION", "EXTENSION"}
    named_otherwise = {"ANALYZE", "CREATE_FUNC", "VARIABLE_SET", "COPY_DATABASE"}  # VACUUM, CREATE, SET, PRAGMA
    assert set(duckdb.StatementType.__members__) - of_no_text - named_otherwise <= tried


def _spill_folder(connection: duckdb.DuckDBPyConnection) -> Path:
    ((found,),) = connection.sql("SELECT current_setting('temp_directory')").fetchall()
    return Path(found)


def test_the_one_folder_that_a_database_can_write_to_is_its_own_and_ends_with_it(lake: Lake) -> None:
    with _sandbox(lake) as connection, _sandbox(lake) as other:
        folder = _spill_folder(connection)
        assert folder != _spill_folder(other)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.is_relative_to(lake.path.resolve())
        connection.execute(f"EXPORT DATABASE '{folder}/out'")
        connection.execute(f"COPY (SELECT 1) TO '{folder}/out.csv'")
        assert (folder / "out.csv").exists()
        with pytest.raises(duckdb.Error):
            other.execute(f"COPY (SELECT 1) TO '{folder}/other.csv'")
    assert not folder.exists()


def test_the_folder_of_a_lakes_database_ends_with_the_last_who_reads(lake: Lake) -> None:
    database = Database(lake.settings.location, Limits())
    with database.cursor() as cursor:
        folder = _spill_folder(cursor)
        database.close()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert cursor.sql("SELECT 1").fetchall() == [(1,)]
    assert not folder.exists()


def test_a_folder_for_temporary_files_within_the_lake_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(lake.path / "gold"))
        with pytest.raises(ConfigurationError, match="is in the lake"):
            cryptopulse.open(lake.path)
        with pytest.raises(ConfigurationError, match="is in the lake"), _sandbox(lake):
            pass


def test_without_a_folder_for_temporary_files_small_questions_are_answered(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with cryptopulse.open(lake.path) as reader:
        assert reader.sql("FROM gold.dm_trade_bars").count() == BARS_ROWS
        with pytest.raises(duckdb.Error), _sandbox(lake) as connection:
            connection.execute("COPY (SELECT 1) TO 'out.csv'")


@pytest.mark.parametrize(
    "text", [f"EXPLAIN ANALYZE {COPY}", f"WITH a AS ({COPY}) SELECT 1", WRITES["DROP"], WRITES["CONNECT"]]
)
def test_the_command_refuses_as_well(
    lake: Lake, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cryptopulse", "sql", "--lake", str(lake.path), _with_file(lake, text)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "only statements that read are allowed" in capsys.readouterr().err


def test_what_a_statement_changes_in_its_database_no_later_one_sees(lake: Lake) -> None:
    """As it was: one database for all, in which a view could be put in the place of the table."""
    counted = "SELECT count(*) FROM gold.dm_trade_bars"
    with _sandbox(lake) as connection:
        connection.execute(WRITES["CREATE VIEW"])
        assert connection.sql(counted).fetchall() == [(1,)]
    with _sandbox(lake) as connection:
        assert connection.sql(counted).fetchall() == [(BARS_ROWS,)]


def test_a_statement_that_needs_more_memory_than_allowed_still_uses_the_disk(lake: Lake) -> None:
    with cryptopulse.open(lake.path, memory_max_mb=100) as small:
        found = small.sql("SELECT range AS a, hash(range) AS b FROM range(8000000) ORDER BY b").batches()
        assert sum(batch.num_rows for batch in found) == 8_000_000
