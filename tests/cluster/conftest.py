"""Which tests of the cluster come first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that of two workers none is left to it alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_spark_kills.py")
