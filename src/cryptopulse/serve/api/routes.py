"""The resources of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from cryptopulse.lake.activity_bars import ACTIVITY_BARS
from cryptopulse.lake.table_rows import TableRows
from cryptopulse.lake.tables import ALERTS, COMPLETENESS, SILVER, STATS
from cryptopulse.serve.api.document import (
    PRODUCT_ROW,
    RETENTION_ROW,
    bar_row,
    event_responses,
    page_responses,
    row_of,
    stored_columns,
)
from cryptopulse.serve.api.events import Events
from cryptopulse.serve.api.formats import RowsPage, negotiate
from cryptopulse.serve.api.parameters import (
    ActivityBarsParams,
    AlertsParams,
    BarsParams,
    EventId,
    EventsParams,
    PageParams,
    RowsParams,
    TradesParams,
    check_repeated,
)
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.api.streaming import DeadlineStream

router = APIRouter()


@router.get("/products", summary="Products", responses=page_responses("Product", PRODUCT_ROW))
async def products(request: Request, params: Annotated[PageParams, Query()]) -> Response:
    """The products that have trades, by name."""
    return await _respond(request, params, lambda service: service.products(params))


@router.get("/trades", summary="Trades", responses=page_responses("Trade", row_of(SILVER)))
async def trades(request: Request, params: Annotated[TradesParams, Query()]) -> Response:
    """Every trade once, by time, product and id. A trade that was fetched later stands where it belongs."""
    ids = {"first_id": params.first_id, "last_id": params.last_id}
    columns = stored_columns(SILVER)
    return await _page(request, params, lambda lake, *which: lake.trades(*which, columns=columns, **ids))


@router.get("/bars", summary="Bars", responses=page_responses("Bar", bar_row()))
async def bars(request: Request, params: Annotated[BarsParams, Query()]) -> Response:
    """Open, high, low, close, volume and more of each bar, by time and product; there is none where nobody traded.

    The newest bar of a product is still growing: its `is_complete` is false.
    """
    return await _page(request, params, lambda lake, *which: lake.bars(*which, grain=params.grain))


@router.get("/activity_bars", summary="Activity bars", responses=page_responses("Bar", row_of(ACTIVITY_BARS)))
async def activity_bars(request: Request, params: Annotated[ActivityBarsParams, Query()]) -> Response:
    """Bars that end by what was traded instead of by the clock, by the time of their first trade.

    A bar ends with the trade that reaches `size`, and with the UTC day. The last bar of a day is rarely full: its
    `is_closed` is false.
    """
    size = params.bar_size
    return await _page(request, params, lambda lake, *w: lake.activity_bars(*w, by=size.measure, size=size.size))


@router.get("/stats", summary="Statistics", responses=page_responses("Statistics", row_of(STATS)))
async def stats(request: Request, params: Annotated[RowsParams, Query()]) -> Response:
    """Price statistics of 5 minutes, by time and product."""
    return await _page(request, params, lambda lake, *which: lake.stats(*which, columns=stored_columns(STATS)))


@router.get("/alerts", summary="Alerts", responses=page_responses("Alert", row_of(ALERTS)))
async def alerts(request: Request, params: Annotated[AlertsParams, Query()]) -> Response:
    """Alert episodes that opened in the time, by that moment. An episode is updated in place while it is OPEN."""
    filters = {name: getattr(params, name) or None for name in ("rule", "alert_type", "severity", "state")}
    columns = stored_columns(ALERTS)
    return await _page(request, params, lambda lake, *which: lake.alerts(*which, columns=columns, **filters))


@router.get("/completeness", summary="Completeness", responses=page_responses("Hour", row_of(COMPLETENESS)))
async def completeness(request: Request, params: Annotated[RowsParams, Query()]) -> Response:
    """Per product and hour: how many trade ids are expected, held, healed, absent at the exchange, and missing."""
    columns = stored_columns(COMPLETENESS)
    return await _page(request, params, lambda lake, *which: lake.completeness(*which, columns=columns))


@router.get("/retention", summary="Retention", responses=page_responses("Table", RETENTION_ROW))
async def retention(request: Request, params: Annotated[PageParams, Query()]) -> Response:
    """The tables of which days were let go on purpose, and from when on they keep all."""
    return await _respond(request, params, lambda service: service.retention())


@router.get("/events", summary="Events", responses=event_responses())
async def events(
    request: Request,
    params: Annotated[EventsParams, Query()],
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
    check_repeated((name for name, _ in request.query_params.multi_items()), EventsParams)
    streams: Events = request.app.state.events
    return await streams.stream(params, last_event_id)


async def _page(request: Request, params: RowsParams, rows_of: Callable[..., TableRows]) -> Response:
    """A page of the rows that `rows_of(lake, products, start, end)` returns."""
    which = params.symbols, *params.times
    return await _respond(request, params, lambda service: service.page(params, lambda lake: rows_of(lake, *which)))


async def _respond(request: Request, params: PageParams, read: Callable[[Service], Awaitable[RowsPage]]) -> Response:
    """The page that `read` returns, in the negotiated format."""
    check_repeated((name for name, _ in request.query_params.multi_items()), type(params))
    form = negotiate(params.format, request.headers.get("accept"))
    service: Service = request.app.state.service
    page = await read(service)
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if page.next is not None:
        query = request.query_params.multi_items()
        others = [(name, value) for name, value in query if name != "cursor"]
        address = f"{request.url.path}?{urlencode([*others, ('cursor', page.next)])}"
        headers["Link"] = f'<{address}>; rel="next"'
    size = page.rows.nbytes
    service.reserve(size)
    return DeadlineStream(form.write(page), headers, form.media_type, lambda: service.release(size))
