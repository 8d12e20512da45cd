"""The simulator's control interface: the ledger with which a pipeline is compared, and commands for tests.

`GET /simulator/ledger`, `GET /simulator/trades/{product}?from=&to=`, `POST /simulator/stop_trading`,
`POST /simulator/faults` (body: faults in their short form), `POST /simulator/rest` (body: JSON of `orders.Orders`).
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import structlog

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.faults import Faults
from cryptopulse.simulator.market import PlayedEpisode
from cryptopulse.simulator.messages import encode, iso_micros
from cryptopulse.simulator.orders import Orders
from cryptopulse.simulator.rest import SimulatedRest
from cryptopulse.simulator.venue import SimulatedVenue
from cryptopulse.simulator.wire import HttpRequest, HttpResponse

log = structlog.get_logger()

_SKIPPED_MAX = 10_000
_TRADES_MAX = 100_000
"""Trades in one answer, about 12 MB; more need further requests."""


class ControlApi:
    """Answers everything under `/simulator/`; faults and limits don't apply to it."""

    def __init__(self, venue: SimulatedVenue, rest: SimulatedRest, stop_trading: Callable[[], None]) -> None:
        """`stop_trading` ends the market and sends the waiting trades."""
        self._venue = venue
        self._rest = rest
        self._stop_trading = stop_trading

    def respond(self, request: HttpRequest) -> HttpResponse:
        """Answers one request."""
        try:
            return self._answer(request)
        except ConfigurationError as error:
            return HttpResponse(encode({"message": str(error)}), HTTPStatus.BAD_REQUEST)

    def _answer(self, request: HttpRequest) -> HttpResponse:
        match request.method, request.path.strip("/").split("/")[1:]:
            case "GET", ["ledger"]:
                return HttpResponse(encode(self.ledger()))
            case "GET", ["trades", product_id] if product_id in self._venue.numbers:
                return self._trades(product_id, request)
            case "POST", ["stop_trading"]:
                self._stop_trading()
                return HttpResponse(encode(self.ledger()))
            case "POST", ["faults"]:
                self._venue.set_faults(Faults.parse(request.body.decode(errors="replace")))
                log.info("simulator_faults_set", faults=str(self._venue.faults))
                return HttpResponse(encode({"faults": str(self._venue.faults)}))
            case "POST", ["rest"]:
                self._rest.orders = Orders.parse(request.body)
                return HttpResponse(encode(self._rest.orders))
        return HttpResponse(encode({"message": "NotFound"}), HTTPStatus.NOT_FOUND)

    def ledger(self) -> dict[str, object]:
        """Counts of everything published so far, without products that have no trade."""
        venue, history = self._venue, self._venue.history
        products = {}
        for number, product in enumerate(venue.products):
            first, last = history.first_id(number), history.last_id(number)
            if last >= first:
                products[product.product_id] = {
                    "first_trade_id": first,
                    "last_trade_id": last,
                    "count": last - first + 1 - len(history.skipped(number)),
                    "skipped_trade_ids": history.skipped(number)[-_SKIPPED_MAX:],
                }
        return {
            "started_at": iso_micros(venue.started_ns // 1000) if venue.started.is_set() else None,
            "market_time": iso_micros(venue.market_us()),
            "trading": venue.started.is_set() and not venue.stopped,
            "trades": history.count(),
            "products": products,
            "rest_requests": dict(self._rest.requests),
            "episodes": [
                self._episode(played)
                for played in venue.market.played
                if venue.started.is_set() and played.episode.at_s * 1e6 <= venue.offset_us()
            ],
        }

    def _episode(self, played: PlayedEpisode) -> dict[str, object]:
        """An episode that has begun; the ids are those of the trades published while the price moved."""
        episode, venue = played.episode, self._venue
        published = venue.history.last_id(venue.numbers[episode.product])
        first, last = played.first_trade_id, played.last_trade_id
        begun = first is not None and first <= published
        return {
            "product": episode.product,
            "kind": episode.kind,
            "depth_pct": episode.depth_pct,
            "at_s": episode.at_s,
            "duration_s": episode.duration_s,
            "recovery": episode.recovery,
            "start_time": iso_micros(venue.writer.start_us + int(episode.at_s * 1e6)),
            "end_time": iso_micros(venue.writer.start_us + int(episode.end_s * 1e6)),
            "first_trade_id": first if begun else None,
            "last_trade_id": min(last, published) if begun and last is not None else None,
            "ended": episode.end_s * 1e6 <= venue.offset_us(),
        }

    def _trades(self, product_id: str, request: HttpRequest) -> HttpResponse:
        history, number = self._venue.history, self._venue.numbers[product_id]
        try:
            low = max(int(request.query.get("from", 0)), history.first_held_id(number))
            high = int(request.query.get("to", history.last_id(number)))
        except ValueError:
            message = {"message": "from and to are trade ids"}
            return HttpResponse(encode(message), HTTPStatus.BAD_REQUEST)
        trades = history.between(number, low, min(high, low + _TRADES_MAX - 1))
        return HttpResponse(encode(self._venue.writer.rest_trades(trades, fixed=False)))
