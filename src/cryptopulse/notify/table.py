"""The table of alerts for the notifier: episodes that new commits added or changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.follower import Follower
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS
from cryptopulse.notify.episodes import COLUMNS, AlertEpisode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AlertsTable:
    """Reads new and changed episodes. Use it from one thread."""

    def __init__(self, lake: LakeLocation) -> None:
        """Opens nothing yet; the table need not exist."""
        self._follower = Follower(lake, ALERTS, COLUMNS, key="alert_id")
        self._open: dict[str, AlertEpisode] = {}
        """The open episodes that were read."""

    def poll_s(self, wanted_s: float) -> float:
        """Seconds between calls of `has_news`; see `Follower.poll_s`."""
        return self._follower.poll_s(wanted_s)

    def has_news(self) -> bool:
        """Whether there are commits that `read` has not seen; see `Follower.has_news`."""
        return self._follower.has_news()

    def read(self, oldest_us: int) -> list[AlertEpisode]:
        """Episodes changed since the last call that were last over the threshold at `oldest_us` (µs UTC) or later.

        The first call, and the first one after the table was recreated, return all of the latter. An open episode of
        which late trades took the row away is returned once more, closed and withdrawn; not from an empty table, which
        is being rebuilt. Raises the errors of `has_news`; then nothing counts as seen.
        """
        news = self._follower.read(lambda _table: f"last_trigger_at >= {delta_time(oldest_us)}")
        oldest = _EPOCH + timedelta(microseconds=oldest_us)
        episodes = (AlertEpisode.of(row) for row in news.rows.select(COLUMNS).to_pylist())
        newest = {episode.alert_id: episode for episode in episodes}  # several commits may have changed it
        gone = self._open.keys() - newest.keys() if news.is_whole and newest else ()
        withdrawn = [replace(self._open.pop(alert_id), state="CLOSED", is_withdrawn=True) for alert_id in sorted(gone)]
        for alert_id, episode in newest.items():
            if episode.is_closed:
                self._open.pop(alert_id, None)
            else:
                self._open[alert_id] = episode
        return [episode for episode in (*newest.values(), *withdrawn) if episode.last_trigger_at >= oldest]
