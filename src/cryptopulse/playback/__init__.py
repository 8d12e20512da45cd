"""Plays a window of a lake again, as the exchange: the same bytes over WebSocket, pages and candles over REST."""

from cryptopulse.playback.server import PlaybackOptions, run, serve

__all__ = ["PlaybackOptions", "run", "serve"]
