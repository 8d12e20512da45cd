"""Makes the Databricks dashboard and the freshness alert from `dashboards/queries.sql`.

Run it after a change there: `.venv/bin/python deploy/databricks/generate.py`. A test fails while that is forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptopulse.lake.queries import Query, load_queries

FOLDER = Path(__file__).parent
_PAGES = {
    "market": ("Market", ("price_trend", "volume_by_asset", "sentiment", "trades_a_minute", "live_alerts")),
    "pipeline": ("Pipeline", ("latency_by_hop", "data_freshness", "completeness", "holes", "incomplete_hours")),
}
"""Pages: name → title and the queries that are on it, each once."""
_WIDE = {"price_trend", "latency_by_hop", "live_alerts"}
_GRID_COLUMNS = 6
_HEIGHT = 7
_PRODUCT_OF = "price_trend"  # prices of different products share no axis, so the reader chooses one
_FIRST_PRODUCT = "BTC-USD"

Json = dict[str, Any]


def dashboard() -> Json:
    """The dashboard as Databricks keeps it (`.lvdash.json`)."""
    queries = load_queries()
    return {
        "datasets": [
            {"name": query.name, "displayName": query.title, "queryLines": query.sql.splitlines(keepends=True)}
            for query in queries.values()
        ],
        "pages": [
            {
                "name": name,
                "displayName": title,
                "pageType": "PAGE_TYPE_CANVAS",
                "layout": _layout(title, on_it, queries),
            }
            for name, (title, on_it) in _PAGES.items()
        ],
    }


def alert() -> Json:
    """The bundle's resources for the alert on stale data."""
    query = load_queries()["data_freshness"]
    # An empty table has no age; for the alert it is older than anything.
    text = f"SELECT MAX(COALESCE(age_s, 1e9)) AS age_s FROM (\n{_in_catalog(query.sql)}\n)\n"  # noqa: S608 - our own query
    evaluation = {
        "source": {"name": "age_s"},
        "comparison_operator": "GREATER_THAN",
        "threshold": {"value": {"double_value": "${var.stale_after_s}"}},
        "empty_result_state": "TRIGGERED",
        "notification": {"notify_on_ok": True, "subscriptions": "${var.alert_subscriptions}"},
    }
    freshness = {
        "display_name": "CryptoPulse: stale data",
        "custom_summary": "CryptoPulse: no table may be this old",
        "custom_description": "The oldest table was written {{QUERY_RESULT_VALUE}} s ago. Look at the job cryptopulse.",
        "query_text": text,
        "warehouse_id": "${resources.sql_warehouses.small.id}",
        "evaluation": evaluation,
        "schedule": {
            "quartz_cron_schedule": "${var.freshness_schedule}",
            "timezone_id": "UTC",
            "pause_status": "${var.state}",
        },
    }
    return {"resources": {"alerts": {"freshness": freshness}}}


def files() -> dict[Path, str]:
    """What the generated files must hold."""
    return {FOLDER / "cryptopulse.lvdash.json": _json(dashboard()), FOLDER / "resources" / "alerts.yml": _json(alert())}


def _json(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _in_catalog(sql: str) -> str:
    """The statement with its tables in the bundle's catalog: an alert can't be told one."""
    for schema in ("bronze", "silver", "gold"):
        for before in ("FROM ", "JOIN "):
            sql = sql.replace(f"{before}{schema}.", f"{before}`${{var.catalog}}`.{schema}.")
    return sql


def _layout(page: str, names: tuple[str, ...], queries: dict[str, Query]) -> list[Json]:
    """The page's title, then the queries from the left to the right and from above to below."""
    places: list[Json] = [_placed(_text_widget(page), 0, 0, 4, 1)]
    x, y = 0, 2
    if _PRODUCT_OF in names:
        places.append(_placed(_product_filter(), 4, 0, 2, 2))
    for name in names:
        width = _GRID_COLUMNS if name in _WIDE else _GRID_COLUMNS // 2
        if x + width > _GRID_COLUMNS:
            x, y = 0, y + _HEIGHT
        places.append(_placed(_widget(queries[name]), x, y, width, _HEIGHT))
        x += width
    return places


def _placed(widget: Json, x: int, y: int, width: int, height: int) -> Json:
    return {"widget": widget, "position": {"x": x, "y": y, "width": width, "height": height}}


def _text_widget(page: str) -> Json:
    return {"name": f"title_{page.lower()}", "multilineTextboxSpec": {"lines": [f"# CryptoPulse: {page}"]}}


def _product_filter() -> Json:
    query = "product"
    return {
        "name": "product",
        "queries": [
            {
                "name": query,
                "query": {"datasetName": _PRODUCT_OF, "fields": _fields(["symbol"]), "disaggregated": False},
            }
        ],
        "spec": {
            "version": 2,
            "widgetType": "filter-single-select",
            "encodings": {"fields": [{"fieldName": "symbol", "displayName": "Product", "queryName": query}]},
            "selection": {
                "defaultSelection": {"values": {"dataType": "STRING", "values": [{"value": _FIRST_PRODUCT}]}}
            },
            "frame": {"showTitle": True, "title": "Product of the price chart"},
        },
    }


def _widget(query: Query) -> Json:
    chart = query.chart
    drawn = [chart.x, *chart.y, chart.color] if chart.kind != "table" else query.columns
    return {
        "name": query.name,
        "queries": [
            {
                "name": "main_query",
                "query": {
                    "datasetName": query.name,
                    "fields": _fields([name for name in drawn if name]),
                    "disaggregated": True,
                },
            }
        ],
        "spec": {
            "version": 2 if chart.kind == "table" else 3,
            "widgetType": chart.kind,
            "encodings": _table(query) if chart.kind == "table" else _axes(query),
            "frame": {
                "showTitle": True,
                "title": query.title,
                "showDescription": True,
                "description": query.description,
            },
        },
    }


def _fields(names: list[str]) -> list[Json]:
    return [{"name": name, "expression": f"`{name}`"} for name in names]


def _axes(query: Query) -> Json:
    chart = query.chart
    temporal = chart.x in {"window_start", "minute"}
    axes: Json = {
        "x": {
            "fieldName": chart.x,
            "displayName": _words(chart.x or ""),
            "scale": {"type": "temporal" if temporal else "categorical"},
        }
    }
    if len(chart.y) == 1:
        axes["y"] = {"fieldName": chart.y[0], "displayName": _words(chart.y[0]), "scale": {"type": "quantitative"}}
    else:
        shown = [{"fieldName": name, "displayName": _words(name)} for name in chart.y]
        axes["y"] = {"scale": {"type": "quantitative"}, "fields": shown}
    if chart.color:
        axes["color"] = {
            "fieldName": chart.color,
            "displayName": _words(chart.color),
            "scale": {"type": "categorical"},
        }
    return axes


def _table(query: Query) -> Json:
    return {"columns": [{"fieldName": name, "displayName": _words(name)} for name in query.columns]}


def _words(column: str) -> str:
    return column.replace("_", " ")


def main() -> None:
    """Writes the files."""
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
