"""Product ids: how the exchange names a market."""

from __future__ import annotations

import re

PRODUCT_ID = r"[A-Z0-9]+(?:-[A-Z0-9]+){1,2}"
"""BASE-QUOTE such as BTC-USD, or three parts such as BIP-20DEC30-CDE (futures), as a regular expression."""

PRODUCT_ID_MAX = 64
"""Most characters of a product id; the longest known has 20."""

_PRODUCT_ID = re.compile(PRODUCT_ID)


def invalid_product_id(text: object) -> str:
    """The error message for a text that is no product id."""
    return f"Invalid product id {text!r} (expected BASE-QUOTE, e.g. BTC-USD)."


def is_product_id(text: str) -> bool:
    """Whether `text` is a product id."""
    return len(text) <= PRODUCT_ID_MAX and _PRODUCT_ID.fullmatch(text) is not None
