"""An import that is killed, or stopped by Ctrl-C, goes on with the same command: no trade is lost or doubled."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from deltalake import DeltaTable

from cryptopulse.lake.tables import BRONZE, SILVER, Table

LINES, BATCH = 60_000, 1_000


def rows(lake: Path, table: Table, column: str) -> list[int]:
    return DeltaTable(str(lake / table.schema / table.name)).to_pyarrow_table(columns=[column])[column].to_pylist()


def lines_noted(lake: Path) -> int:
    return max((json.loads(one.read_bytes())["lines"] for one in lake.glob("_cryptopulse/imports/*.json")), default=0)


def test_an_import_that_is_killed_and_stopped_is_finished_by_the_same_command(tmp_path: Path) -> None:
    file, lake = tmp_path / "trades.csv", tmp_path / "lake"
    text = ["exchange,symbol,timestamp,local_timestamp,id,side,price,amount"]
    text += [
        f"coinbase,BTC-USD,{1_594_132_800_000_000 + n * 1000},,{n},buy,9250.5,0.{n:06}" for n in range(1, LINES + 1)
    ]
    file.write_text("\n".join(text))
    command = [sys.executable, "-m", "cryptopulse", "import", str(file), "--lake", str(lake)]
    command += ["--batch-messages", str(BATCH), "--json"]
    for end in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        before = lines_noted(lake)
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while lines_noted(lake) < before + 5 * BATCH and popen.poll() is None:
            time.sleep(0.01)
        popen.send_signal(end)
        _, said = popen.communicate(timeout=120)
        assert popen.returncode == (130 if end == signal.SIGINT else -end), said
    assert "Stopped: " in said
    assert "The same command goes on." in said
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["files"][0]["imported_before"] >= 15 * BATCH
    assert sorted(rows(lake, SILVER, "trade_id")) == list(range(1, LINES + 1))
    assert LINES <= len(rows(lake, BRONZE, "offset")) <= LINES + 2 * BATCH
    assert lines_noted(lake) == LINES
