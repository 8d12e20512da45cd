"""The files that browsers load besides NiceGUI's own: modules and style sheet in `browser/`."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER: Final = Path(__file__).parent / "browser"
"""Their folder. They are served unchanged."""


class _Assets(StaticFiles):
    """Files whose path changes with their content, so that browsers never need to revalidate."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


@cache
def address() -> str:
    """The path under which the files are served. It contains a hash of their content."""
    digest = hashlib.sha256()
    for file in sorted(FOLDER.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return f"/assets/{digest.hexdigest()[:16]}"


def add_assets(app: FastAPI) -> str:
    """Serves the files with `app`; returns their path."""
    app.mount(address(), _Assets(directory=FOLDER), name="assets")
    return address()
