"""A part of a page that is drawn in the browser, by one of the modules in `browser/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui.element import Element

from cryptopulse.serve.dashboard.assets import FOLDER, address


class View(Element, component="view.js"):
    """Mounts `browser/<module>.js` into the page: its function `mount(element, options)` draws, and may return an
    object with `unmount` and other methods, which `call` calls.
    """

    def __init__(self, module: str, **options: Any) -> None:
        """`options` are handed to the module; what JSON can say."""
        super().__init__()
        assert (FOLDER / f"{module}.js").is_file(), module
        self._props["module"] = f"{address()}/{module}.js"
        self._props["options"] = options

    def call(self, method: str, *values: Any) -> None:
        """Calls a method of the view in the browser, without waiting for it."""
        self.run_method("call", method, *values)

    def change(self, options: Mapping[str, Any]) -> None:
        """Hands other options to the view, by its method `change`."""
        self._props["options"] = {**self._props["options"], **options}
        self.call("change", self._props["options"])
