"""The simulator: a server that speaks Coinbase's protocols over a seeded market, and misbehaves on order.

It drives the demo, the tests and the benchmarks, and lets users try their alert rules.
"""

from cryptopulse.simulator.episodes import Episode, parse_episode
from cryptopulse.simulator.faults import Faults
from cryptopulse.simulator.options import SimulatorOptions
from cryptopulse.simulator.server import run, serve

__all__ = ["Episode", "Faults", "SimulatorOptions", "parse_episode", "run", "serve"]
