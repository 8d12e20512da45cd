"""schemathesis asks what the OpenAPI document allows, and what it forbids, and finds nothing.

The seed stands in the output; `SCHEMATHESIS_SEED=… pytest …` asks the same again.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import dashboard_lake
from support import Lake, some
from support_serve import TOKEN, Served

_CONFIGURATION = """
# 400 is for what a schema can't say: a 31st of February, an end before the start, a cursor of another question. What
# each means is tested in test_serve_api.py.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "406"]
"""


@pytest.mark.parametrize("examples", some(1, [5, 400]))
def test_schemathesis_finds_nothing(tmp_path: Path, examples: int) -> None:
    seed = os.environ.get("SCHEMATHESIS_SEED") or str(random.randrange(2**32))
    print(f"SCHEMATHESIS_SEED={seed}")
    lake = Lake(tmp_path / "lake")
    dashboard_lake.fill(lake)
    lake.close()
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(_CONFIGURATION)
    with Served(lake.path, token=TOKEN) as served:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", f"--config-file={configuration}", "run"),
            f"{served.url}/api/openapi.json",
            f"--header=Authorization: Bearer {TOKEN}",
            f"--seed={seed}",
            "--checks=all",
            "--phases=examples,coverage,fuzzing",
            "--mode=all",
            f"--max-examples={examples}",
            "--request-timeout=20",
            "--exclude-path=/events",  # has no end
            "--no-color",
        ]
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
        print(told.stdout)
        assert told.returncode == 0, told.stderr
        figures = served.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    answered = [line for line in figures.splitlines() if line.startswith("cryptopulse_http_requests_total")]
    assert not [line for line in answered if 'status="5' in line]
    # It must have got through, and not only been refused.
    for path in ("products", "trades", "bars", "stats", "alerts", "completeness"):
        good = [line for line in answered if f'handler="/api/{path}"' in line and 'status="200"' in line]
        assert good, f"/api/{path} was never asked well"
