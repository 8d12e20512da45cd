"""Reads exports with NautilusTrader and hftbacktest themselves, in .venv-backtest, and prints what they hold as JSON.

python backtest_reader.py CATALOG INSTRUMENT EVENTS.npz BARS
"""

from __future__ import annotations

import json
import sys

import numpy as np
from hftbacktest import BacktestAsset, HashMapMarketDepthBacktest
from hftbacktest.data import validate_event_order
from hftbacktest.types import BUY_EVENT, EXCH_EVENT, LOCAL_EVENT, SELL_EVENT, TRADE_EVENT, event_dtype
from nautilus_trader.backtest.config import (
    BacktestDataConfig,
    BacktestEngineConfig,
    BacktestRunConfig,
    BacktestVenueConfig,
)
from nautilus_trader.backtest.node import BacktestNode
from nautilus_trader.config import LoggingConfig
from nautilus_trader.model.data import TradeTick
from nautilus_trader.model.enums import AggressorSide
from nautilus_trader.persistence.catalog import ParquetDataCatalog

folder, instrument, events, bars = sys.argv[1:]
catalog = ParquetDataCatalog(folder)


def as_list(tick: TradeTick) -> list[object]:
    side = {AggressorSide.BUYER: "BUY", AggressorSide.SELLER: "SELL"}[tick.aggressor_side]
    numbers = [tick.trade_id.value, str(tick.price), str(tick.size), side, tick.ts_event, tick.ts_init]
    return [tick.instrument_id.value, *numbers]


def plain(number: object) -> str:
    """Without the zeros that the instrument's precision adds."""
    text = str(number)
    return text.rstrip("0").rstrip(".") if "." in text else text


run = BacktestRunConfig(
    engine=BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)),
    venues=[
        BacktestVenueConfig(
            name="COINBASE", oms_type="NETTING", account_type="CASH", base_currency=None, starting_balances=["1 USD"]
        )
    ],
    data=[BacktestDataConfig(catalog_path=folder, data_cls=TradeTick, instrument_id=instrument)],
    raise_exception=True,
)
(result,) = BacktestNode(configs=[run]).run()

array = np.load(events)["data"]
assert array.dtype == event_dtype
validate_event_order(array)
asset = (
    BacktestAsset()
    .data([events])
    .linear_asset(1.0)
    .constant_order_latency(0, 0)
    .risk_adverse_queue_model()
    .no_partial_fill_exchange()
    .trading_value_fee_model(0, 0)
    .tick_size(0.01)
    .lot_size(1e-8)
    .last_trades_capacity(1000)
)
backtest = HashMapMarketDepthBacktest([asset])
while backtest.elapse(10**9) == 0:
    pass
trades = backtest.last_trades(0)

print(
    json.dumps(
        {
            "ticks": [as_list(tick) for tick in catalog.trade_ticks()],
            "of_one": [as_list(tick) for tick in catalog.trade_ticks([instrument])],
            "later": [as_list(tick) for tick in catalog.trade_ticks([instrument], start="2026-07-07T12:00:01")],
            "bars": [
                [str(bar.bar_type), *map(plain, (bar.open, bar.high, bar.low, bar.close, bar.volume)), bar.ts_init]
                for bar in ParquetDataCatalog(bars).bars()
            ],
            "instruments": [
                [one.id.value, str(one.price_increment), str(one.size_increment), one.base_currency.code]
                for one in catalog.instruments()
            ],
            "iterations": result.iterations,
            "events": len(array),
            "trades": [[int(one["local_ts"]), float(one["px"]), float(one["qty"])] for one in trades],
            "flags": {
                name: int((array["ev"] & flag == flag).sum())
                for name, flag in (
                    ("buy", BUY_EVENT | TRADE_EVENT),
                    ("sell", SELL_EVENT | TRADE_EVENT),
                    ("exchange", EXCH_EVENT),
                    ("local", LOCAL_EVENT),
                )
            },
        }
    )
)
