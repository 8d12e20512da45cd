"""Scripted answers of REST, for cases that random faults can't express, such as one product's 403 or a broken row."""

from __future__ import annotations

import msgspec

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.wire import HttpResponse


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """An answer that replaces the right one."""

    path: str = ""
    """It applies to requests whose path ends like this; "": to all."""
    times: int = 1
    """How often it applies; -1: always."""
    status: int = 200
    headers: dict[str, str] = {}
    """Names in lower case."""
    body: bytes | None = None
    """Base64 in JSON; None: the right body."""
    reversed: bool = False
    """Whether the rows of the body are in reverse order."""
    truncated: bool = False
    reset: bool = False

    def of(self, right: HttpResponse) -> HttpResponse:
        """This answer, with the parts that it does not replace from the right one."""
        body = right.body if self.body is None else self.body
        if self.reversed:
            body = msgspec.json.encode(msgspec.json.decode(body, type=list[msgspec.Raw])[::-1])
        return HttpResponse(body, self.status, {**right.headers, **self.headers}, self.truncated, self.reset)


class Orders(msgspec.Struct, forbid_unknown_fields=True):
    """Scripted answers and rows of REST."""

    answers: list[Answer] = []
    """A request gets the first one that applies to it."""
    rows: dict[str, dict[int, msgspec.Raw]] = {}
    """By product and trade id: the row that replaces a trade on every page."""

    @classmethod
    def parse(cls, text: bytes) -> Orders:
        """Orders from JSON. Raises ConfigurationError when `text` is invalid."""
        try:
            return msgspec.json.decode(text, type=cls)
        except ValueError as error:
            raise ConfigurationError(f"These are no orders: {error}") from error

    def take(self, path: str) -> Answer | None:
        """The scripted answer for a request of `path`, if any; counts it as used."""
        for answer in self.answers:
            if answer.times and path.endswith(answer.path):
                answer.times -= 1
                return answer
        return None
