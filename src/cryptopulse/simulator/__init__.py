"""The simulator: a server that speaks Coinbase's protocols over a seeded market, and injects faults on request.

It drives the demo, the tests and the benchmarks, and lets users try their alert rules.
"""

from cryptopulse.simulator.episodes import StagedEpisode, parse_episode
from cryptopulse.simulator.faults import Faults
from cryptopulse.simulator.options import SimulatorOptions
from cryptopulse.simulator.server import run, serve

__all__ = ["Faults", "SimulatorOptions", "StagedEpisode", "parse_episode", "run", "serve"]
