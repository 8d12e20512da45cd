"""Answers of REST on order: for what faults with probabilities can't say, such as one product's 403 or a broken row."""

from __future__ import annotations

import msgspec

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.wire import HttpResponse


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """What comes in the place of the right answer."""

    path: str = ""
    """The end of the paths that it is for; "" for all."""
    times: int = 1
    """How often; -1: always."""
    status: int = 200
    headers: dict[str, str] = {}
    """Names in lower case."""
    body: bytes | None = None
    """Base64 in JSON; None: the right one."""
    reversed: bool = False
    """The rows of the body come in the other order."""
    truncated: bool = False
    reset: bool = False

    def of(self, right: HttpResponse) -> HttpResponse:
        """The answer, made of the right one."""
        body = right.body if self.body is None else self.body
        if self.reversed:
            body = msgspec.json.encode(msgspec.json.decode(body, type=list[msgspec.Raw])[::-1])
        return HttpResponse(body, self.status, {**right.headers, **self.headers}, self.truncated, self.reset)


class Orders(msgspec.Struct, forbid_unknown_fields=True):
    """What REST does wrong on order."""

    answers: list[Answer] = []
    """Each request takes the first that is for it."""
    rows: dict[str, dict[int, msgspec.Raw]] = {}
    """By product and trade id: what stands in the place of a trade on every page."""

    @classmethod
    def parse(cls, text: bytes) -> Orders:
        """Orders from JSON. Raises ConfigurationError for what is none."""
        try:
            return msgspec.json.decode(text, type=cls)
        except ValueError as error:
            raise ConfigurationError(f"These are no orders: {error}") from error

    def take(self, path: str) -> Answer | None:
        """The answer for a request of `path`, if one is ordered; it counts as given."""
        for answer in self.answers:
            if answer.times and path.endswith(answer.path):
                answer.times -= 1
                return answer
        return None
