"""The processes of this machine, as their status files tell (`cryptopulse.status`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptopulse.status import ALL_PROCESSES, ProcessStatus, read_status

_LEFT_OUT = frozenset({"products", "alerts", "connection_states"})  # long, and shown elsewhere


def processes_answer(state_dir: Path | None) -> Mapping[str, Any]:
    """All processes that have ever run here, with their own figures; `processes` is empty when they run elsewhere."""
    found = [] if state_dir is None else [read_status(state_dir, name) for name in ALL_PROCESSES]
    return {"at_ms": time.time() * 1000, "processes": [_plain(one) for one in found if one.state != "absent"]}


def _plain(process: ProcessStatus) -> dict[str, Any]:
    return {
        "name": process.name,
        "state": process.state,
        "pid": process.pid,
        "started_at": _ms(process.started_at),
        "updated_at": _ms(process.updated_at),
        "restarts": process.restarts,
        "error": process.error,
        "report": {name: value for name, value in process.report.items() if name not in _LEFT_OUT},
    }


def _ms(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp() * 1000
