"""The resources of the API: what each is made of, and what OpenAPI says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from cryptopulse.lake.tables import ALERTS, COMPLETENESS, SILVER, STATS
from cryptopulse.serve.api.document import PRODUCT_ROW, answers, bar_row, event_answers, row_of, stored_columns
from cryptopulse.serve.api.events import Events
from cryptopulse.serve.api.formats import Page, chosen
from cryptopulse.serve.api.parameters import (
    AlertsAsked,
    BarsAsked,
    EventId,
    EventsAsked,
    PageAsked,
    RowsAsked,
    TradesAsked,
    check_names,
)
from cryptopulse.serve.api.service import Service

router = APIRouter()


@router.get("/products", summary="Products", responses=answers("Product", PRODUCT_ROW))
async def products(request: Request, asked: Annotated[PageAsked, Query()]) -> Response:
    """The products of which trades are held, by name."""
    return await _answer(request, asked, lambda service: service.products(asked))


@router.get("/trades", summary="Trades", responses=answers("Trade", row_of(SILVER)))
async def trades(request: Request, asked: Annotated[TradesAsked, Query()]) -> Response:
    """Every trade once, by time, product and id. A trade that was fetched later stands where it belongs."""
    start, end = asked.times
    columns = stored_columns(SILVER)
    return await _answer(
        request,
        asked,
        lambda service: service.page(
            asked,
            lambda lake: lake.trades(
                asked.symbols, start, end, first_id=asked.first_id, last_id=asked.last_id, columns=columns
            ),
        ),
    )


@router.get("/bars", summary="Bars", responses=answers("Bar", bar_row()))
async def bars(request: Request, asked: Annotated[BarsAsked, Query()]) -> Response:
    """Open, high, low, close, volume and more of each bar, by time and product; there is none where nobody traded.

    The newest bar of a product is still growing: its `is_complete` is false.
    """
    start, end = asked.times
    return await _answer(
        request,
        asked,
        lambda service: service.page(asked, lambda lake: lake.bars(asked.symbols, start, end, grain=asked.grain)),
    )


@router.get("/stats", summary="Statistics", responses=answers("Statistics", row_of(STATS)))
async def stats(request: Request, asked: Annotated[RowsAsked, Query()]) -> Response:
    """Price statistics of 5 minutes, by time and product."""
    start, end = asked.times
    columns = stored_columns(STATS)
    return await _answer(
        request,
        asked,
        lambda service: service.page(asked, lambda lake: lake.stats(asked.symbols, start, end, columns=columns)),
    )


@router.get("/alerts", summary="Alerts", responses=answers("Alert", row_of(ALERTS)))
async def alerts(request: Request, asked: Annotated[AlertsAsked, Query()]) -> Response:
    """Alert episodes that opened in the time, by that moment. An episode is updated in place while it is OPEN."""
    start, end = asked.times
    columns = stored_columns(ALERTS)
    chosen_by = {name: getattr(asked, name) or None for name in ("rule", "alert_type", "severity", "state")}
    return await _answer(
        request,
        asked,
        lambda service: service.page(
            asked, lambda lake: lake.alerts(asked.symbols, start, end, columns=columns, **chosen_by)
        ),
    )


@router.get("/completeness", summary="Completeness", responses=answers("Hour", row_of(COMPLETENESS)))
async def completeness(request: Request, asked: Annotated[RowsAsked, Query()]) -> Response:
    """Per product and hour: how many trade ids are expected, held, healed, absent at the exchange, and missing."""
    start, end = asked.times
    columns = stored_columns(COMPLETENESS)
    return await _answer(
        request,
        asked,
        lambda service: service.page(asked, lambda lake: lake.completeness(asked.symbols, start, end, columns=columns)),
    )


@router.get("/events", summary="Events", responses=event_answers())
async def events(
    request: Request,
    asked: Annotated[EventsAsked, Query()],
    last_event_id: Annotated[
        EventId, Header(alias="Last-Event-ID", description="The id of the last alert that was received.")
    ] = None,
) -> Response:
    """Alerts and prices as they come, as server-sent events, without an end.

    `alert`: a row as /alerts has it, whenever it changes; at first those that are open, or with `Last-Event-ID` all
    that changed since. `alert_gone`: an episode became a part of another. `prices`: last prices, exact; changes over 1
    and 5 minutes, 1 and 24 hours in percent; amounts and volume of 24 hours. `lake`: whether it can be read. `end`: the
    server ends; come back in a moment. A comment comes every 15 quiet seconds.
    """
    check_names((name for name, _ in request.query_params.multi_items()), EventsAsked)
    told: Events = request.app.state.events
    return await told.stream(asked, last_event_id)


async def _answer(request: Request, asked: PageAsked, read: Callable[[Service], Awaitable[Page]]) -> Response:
    """The page as the visitor wants it."""
    check_names((name for name, _ in request.query_params.multi_items()), type(asked))
    form = chosen(asked.format, request.headers.get("accept"))
    service: Service = request.app.state.service
    page = await read(service)
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if page.next is not None:
        query = request.query_params.multi_items()
        others = [(name, value) for name, value in query if name != "cursor"]
        address = f"{request.url.path}?{urlencode([*others, ('cursor', page.next)])}"
        headers["Link"] = f'<{address}>; rel="next"'
    return StreamingResponse(form.write(page), 200, headers, form.media_type)
