"""The parameters of the API: validated before anything is read, and described for OpenAPI.

A parameter with invalid syntax is answered with 422; one with valid syntax but no meaning (an end before the start, a
31st of February) with 400.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.activity_bars import BarSize, Measure
from cryptopulse.lake.alerts import KINDS, AlertType, Severity
from cryptopulse.lake.products import PRODUCT_ID_MAX, SYMBOL
from cryptopulse.serve.api import paging
from cryptopulse.serve.api.formats import FORMATS
from cryptopulse.serve.http.problems import Problem

LIMIT_MAX: Final = 100_000
LIMIT_DEFAULT: Final = 1000
VALUES_MAX: Final = 100
"""How often a parameter may be repeated."""

_DAY = "(19|20|21)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?"
_OFFSET = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_ID_MAX = 2**63 - 1
_TEXT_MAX = 65_536


def _text(pattern: str, how: str, **more: int) -> tuple[BeforeValidator, WithJsonSchema]:
    """Validator and schema of a text; `pattern` without ^ and $; `more` may be maxLength."""
    longest = more.get("maxLength", _TEXT_MAX)

    def checked(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or re.fullmatch(pattern, value) is None:
            raise ValueError(how)
        return value

    return BeforeValidator(checked), WithJsonSchema({"type": "string", "pattern": f"^{pattern}$", **more})


def _whole(low: int, high: int, **more: Any) -> tuple[BeforeValidator, WithJsonSchema]:
    """Validator and schema of an integer."""

    def checked(value: Any) -> int:
        # Only digits: Python's int() also accepts `1_000`.
        is_one = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
        if not is_one or not low <= int(value) <= high:
            raise ValueError(f"write a whole number from {low} to {high}")
        return int(value)

    schema = {"type": "integer", "minimum": low, "maximum": high, **more}
    return BeforeValidator(checked), WithJsonSchema(schema)


Limit = Annotated[int, *_whole(1, LIMIT_MAX, default=LIMIT_DEFAULT)]
TradeId = Annotated[int | None, *_whole(0, _ID_MAX)]
Cursor = Annotated[str | None, *_text(paging.PATTERN, "take it from the page before")]
FormatName = Annotated[str | None, WithJsonSchema({"type": "string", "enum": list(FORMATS)})]
Symbol = Annotated[
    str, *_text(SYMBOL, "write a product like BTC-USD, and repeat symbol= for several", maxLength=PRODUCT_ID_MAX)
]
Time = Annotated[
    str | None,
    *_text(
        f"{_DAY}(T{_CLOCK}{_OFFSET}?)?",
        "write a time like 2026-11-27T12:00:00Z, or a day; the + of an offset is %2B in an address",
    ),
]
EventId = Annotated[str | None, *_text("[0-9]{1,17}", "take it from the event that was received last")]
RuleName = Annotated[str, *_text("[ -~]{1,100}", "write the name of a rule")]
BarSizeText = Annotated[str, *_text(r"[0-9]{1,15}(\.[0-9]{1,12})?", "write a number like 100 or 0.5")]
Grain = Literal["1s", "5s", "10s", "15s", "30s", "1m", "5m", "15m", "30m", "1h", "4h", "12h", "1d"]


class PageParams(BaseModel):
    """Which page, and how it is written."""

    model_config = ConfigDict(extra="forbid")

    limit: Limit = Field(LIMIT_DEFAULT, description="Most rows of a page.", examples=[100])
    cursor: Cursor = Field(
        None,
        description="Where the page begins: `next` of the page before. All other parameters must be as they were "
        "there, but for `limit` and `format`.",
    )
    format: FormatName = Field(
        None,
        description="Format of the page, whatever the header Accept says: JSON, CSV, an Arrow IPC stream, or Parquet.",
        examples=["json"],
    )


class RowsParams(PageParams):
    """Which products, in which time."""

    symbol: list[Symbol] = Field(
        [],
        description="A product; repeat it for several. Without it: all.",
        max_length=VALUES_MAX,
        examples=[["BTC-USD", "ETH-USD"]],
    )
    start: Time = Field(
        None,
        description="Rows from this moment on (included): ISO 8601, UTC unless it has an offset; write the + of an "
        "offset as %2B.",
        examples=["2026-11-27T12:00:00Z"],
    )
    end: Time = Field(
        None,
        description="Rows before this moment (not included), written like start.",
        examples=["2026-11-27T13:00:00Z"],
    )
    as_of: Time = Field(
        None,
        description="As it was known at this moment, without what was loaded later, written like start.",
        examples=["2026-11-27T21:15:00Z"],
    )
    order: Literal["asc", "desc"] = Field("asc", description="By time: from the oldest, or from the newest.")

    @property
    def symbols(self) -> list[str] | None:
        """The products; None for all."""
        return sorted(set(self.symbol)) or None

    @property
    def times(self) -> tuple[datetime | None, datetime | None]:
        """Start and end in UTC, None if not given. Raises Problem for an invalid time, or an end before the start."""
        start, end = self._time("start"), self._time("end")
        if start is not None and end is not None and start >= end:
            raise Problem(400, "empty_time", "end must lie after start.", parameters=[("end", "not after start")])
        return start, end

    @property
    def moment(self) -> datetime | None:
        """The moment `as_of`, UTC; None for now. Raises Problem for an invalid time."""
        return self._time("as_of")

    def _time(self, name: str) -> datetime | None:
        if (text := getattr(self, name)) is None:
            return None
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            detail = f"invalid time ({error})"
            raise Problem(400, "no_such_time", f"{name}: {detail}.", parameters=[(name, detail)]) from None
        try:
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except OverflowError:  # within a day of the year 1 or 9999
            return moment.replace(tzinfo=UTC)

    @property
    def query(self) -> str:
        """Hash of the query, which its cursors contain."""
        return paging.query_digest(type(self).__name__, self.model_dump(exclude={"limit", "cursor", "format"}))


class TradesParams(RowsParams):
    """Which trades."""

    first_id: TradeId = Field(
        None, description="Trades from this trade id on (included). Ids are counted by product.", examples=[1000]
    )
    last_id: TradeId = Field(None, description="Trades up to this trade id (included).", examples=[1999])


class BarsParams(RowsParams):
    """Which bars."""

    grain: Grain = Field(
        "1m", description="Length of a bar: seconds, minutes, hours, or a day. Bars begin at its multiples (UTC)."
    )


class ActivityBarsParams(RowsParams):
    """Which activity bars."""

    by: Measure = Field(
        description="What ends a bar: the number of its trades, their volume or value, by how many trades or by what "
        "volume buyers and sellers differ, or highest minus lowest price.",
        examples=["volume"],
    )
    size: BarSizeText = Field(description="A bar ends with the trade with which it reaches this.", examples=["100"])

    @property
    def bar_size(self) -> BarSize:
        """The two together. Raises Problem for a size that no such bar can have."""
        try:
            return BarSize.of(self.by, self.size)
        except ConfigurationError as error:
            raise Problem(400, "no_such_size", str(error), parameters=[("size", "impossible size")]) from None


class AlertsParams(RowsParams):
    """Which alert episodes."""

    rule: list[RuleName] = Field(
        [], description="Name of a rule; repeat it for several.", max_length=VALUES_MAX, examples=[["default"]]
    )
    alert_type: list[AlertType] = Field([], description="What happened; repeat it for several.", max_length=len(KINDS))
    severity: list[Severity] = Field([], description="How severe; repeat it for several.", max_length=3)
    state: list[Literal["OPEN", "CLOSED"]] = Field(
        [], description="Whether the episode is over; repeat it for both.", max_length=2
    )


class EventsParams(BaseModel):
    """Which events."""

    model_config = ConfigDict(extra="forbid")

    symbol: list[Symbol] = Field(
        [],
        description="A product; repeat it for several. Without it: all.",
        max_length=VALUES_MAX,
        examples=[["BTC-USD"]],
    )
    kind: list[Literal["alerts", "prices"]] = Field(
        [], description="Kinds of events; repeat it for both. Without it: both.", max_length=2, examples=[["alerts"]]
    )

    @property
    def symbols(self) -> list[str] | None:
        """The products; None for all."""
        return sorted(set(self.symbol)) or None


def check_repeated(names: Iterable[str], params: type[BaseModel]) -> None:
    """Raises Problem for a parameter that is given twice but may be given only once."""
    seen: set[str] = set()
    for name in names:
        field = params.model_fields.get(name)
        if name in seen and field is not None and field.default != []:
            raise Problem(422, "bad_parameter", f"{name} is given twice.", parameters=[(name, "given twice")])
        seen.add(name)
