"""Fault injection: what can go wrong between an exchange and its clients, with a seed of its own.

Faults affect only what is sent. The market, its ledger and (except for the REST faults) REST stay right: a dropped
trade was published, and can be fetched. Only `skip` changes the market itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from websockets.frames import Opcode

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.wire import frame

OVERSIZED_BYTES = 6 * 1024 * 1024
"""More than the largest message seen on the feeds, 5.1 MB."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and how often. The default is nothing."""

    skip: float = 0.0
    """Probability that the exchange skips a trade id: it is missing on every feed, over REST, and in the ledger."""
    only: int = -1
    """Number of the only connection (the first is 0) with faults of messages and connections; -1: all."""
    drop: float = 0.0
    """Probability that a trade message is not delivered."""
    duplicate: float = 0.0
    """Probability that a trade message comes twice."""
    reorder: float = 0.0
    """Probability that a trade message comes up to five messages late."""
    garbage: float = 0.0
    """Probability that an unreadable message comes before a trade message: in turn malformed JSON, a binary frame, an
    unknown type, invalid UTF-8, fields of wrong types, huge numbers."""
    disconnect: float = 0.0
    """A connection is cut this many seconds after it subscribed; 0: never."""
    silence: tuple[float, float] = (0.0, 0.0)
    """(start, length) in seconds: from `start` after these faults began, the connections then open stay open but send
    nothing for `length`. Their messages of that time are lost. Later connections work."""
    mute: tuple[str, float] = ("", 0.0)
    """(product, start): `start` seconds after these faults began, the connections then open lose their subscription to
    the product without a message, until it is subscribed again."""
    oversized: float = 0.0
    """Seconds between two messages of 6 MB on a connection; 0: never."""
    rest_429: float = 0.0
    """Probability that REST answers 429, in addition to its rate limit."""
    rest_500: float = 0.0
    """Probability that REST answers 500."""
    rest_slow: float = 0.0
    """Seconds that each REST answer takes."""
    rest_stale: float = 0.0
    """Age of pages of trades in seconds, as if they came from a cache."""
    rest_truncated: float = 0.0
    """Probability that a REST answer ends in the middle of its JSON."""

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Faults from `drop=0.01,silence=20s+10s,mute=BTC-USD@20s,rest-429=0.2`; empty text means none.

        Raises ConfigurationError for unknown names and invalid values.
        """
        given: dict[str, int | float | tuple[float | str, float]] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = item.partition("=")
            if name not in _READERS:
                raise ConfigurationError(f"Unknown fault {name!r}: use {', '.join(_READERS)}.")
            given[name.replace("-", "_")] = _READERS[name](name, value)
        return cls(**given)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The form that `parse` reads."""
        parts = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                name = item.name.replace("_", "-")
                unit = "s" if _READERS[name] is _duration else ""
                match value:
                    case (str(product), start):
                        text = f"{product}@{start:g}s"
                    case (start, length):
                        text = f"{start:g}s+{length:g}s"
                    case _:
                        text = f"{value:g}{unit}"
                parts.append(f"{name}={text}")
        return ",".join(parts)

    @property
    def touch_messages(self) -> bool:
        """Whether there are faults of single trade messages: dropped, repeated, reordered, or garbage in between."""
        return bool(self.drop or self.duplicate or self.reorder or self.garbage)


def _probability(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigurationError(f"Fault {name}={text}: give a probability between 0 and 1, like {name}=0.01.")
    return value


def _connection(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"Fault {name}={text}: give the number of a connection; the first is {name}=0.")
    return int(text)


def _duration(name: str, text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"Fault {name}={text}: give a time with its unit, like {name}=30s or 500ms.")
    return float(match[1]) * _UNITS_S[match[2]]


def _window(name: str, text: str) -> tuple[float, float]:
    start, plus, length = text.partition("+")
    if not plus:
        raise ConfigurationError(f"Fault {name}={text}: give start and length, like {name}=20s+10s.")
    return _duration(name, start), _duration(name, length)


def _product(name: str, text: str) -> tuple[str, float]:
    product, at, start = text.partition("@")
    if not product or not at:
        raise ConfigurationError(f"Fault {name}={text}: give a product and a time, like {name}=BTC-USD@20s.")
    return product, _duration(name, start)


_READERS: dict[str, Callable[[str, str], int | float | tuple[float | str, float]]] = {
    "skip": _probability,
    "only": _connection,
    "drop": _probability,
    "duplicate": _probability,
    "reorder": _probability,
    "garbage": _probability,
    "disconnect": _duration,
    "silence": _window,
    "mute": _product,
    "oversized": _duration,
    "rest-429": _probability,
    "rest-500": _probability,
    "rest-slow": _duration,
    "rest-stale": _duration,
    "rest-truncated": _probability,
}


class MessageFaults:
    """The faults of one connection's trade messages, with the message that is held back."""

    def __init__(self, seed: int, product_id: str) -> None:
        """`product_id` is put into garbage, so that a sloppy reader takes it for a trade of that product."""
        self._random = random.Random(seed)  # noqa: S311  nothing secret
        self._held: bytes | None = None
        self._held_for = 0
        name = product_id.encode()
        self._garbage = [
            frame(b'{"type":"match","trade_id":12,"product_id":"%s","price":' % name),
            frame(bytes(range(256)), Opcode.BINARY),
            frame(b'{"type":"weather","product_id":"%s","sky":["clear"]}' % name),
            frame(b'{"type":"match","product_id":"%s","side":"\xff\xfe\x80"}' % name),
            frame(
                b'{"type":"match","trade_id":"seven","side":1,"size":{},"price":[],"product_id":"%s",'
                b'"sequence":null,"time":0}' % name
            ),
            frame(
                b'{"type":"match","trade_id":%s,"maker_order_id":"","taker_order_id":"","side":"buy","size":"1e999",'
                b'"price":"%s","product_id":"%s","sequence":1,"time":"9999-99-99T99:99:99Z"}'
                % (b"9" * 400, b"9" * 400, name)
            ),
        ]
        self._garbage_next = 0

    def through(self, frames: Iterable[bytes], faults: Faults) -> list[bytes]:
        """The frames to send now for `frames`, in order."""
        chance = self._random.random
        sent: list[bytes] = []
        for message in frames:
            if faults.garbage and chance() < faults.garbage:
                sent.append(self._garbage[self._garbage_next % len(self._garbage)])
                self._garbage_next += 1
            if faults.drop and chance() < faults.drop:
                continue
            if faults.reorder and self._held is None and chance() < faults.reorder:
                self._held, self._held_for = message, self._random.randint(1, 5)
                continue
            sent.append(message)
            if faults.duplicate and chance() < faults.duplicate:
                sent.append(message)
            self._held_for -= 1
            if self._held_for <= 0:
                sent += self.release()
        return sent

    def release(self) -> list[bytes]:
        """The message that is held back, if any, so that it is not lost."""
        held = [] if self._held is None else [self._held]
        self._held = None
        return held


def oversized_frame(product_id: str) -> bytes:
    """A well-formed message of another type, larger than any on a real trade feed."""
    level = b'["0.00000001","0.00000001"]'
    levels = b",".join([level] * (OVERSIZED_BYTES // (len(level) + 1)))
    return frame(b'{"type":"snapshot","product_id":"%s","asks":[%s],"bids":[]}' % (product_id.encode(), levels))
