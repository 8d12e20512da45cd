"""The table of alerts as the notifier sees it: the episodes that a commit brought or changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.follower import Follower
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS
from cryptopulse.notify.episodes import COLUMNS, AlertEpisode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AlertsTable:
    """Gives the episodes that are new or have changed. From one thread."""

    def __init__(self, lake: LakeLocation) -> None:
        """Nothing is opened yet; the table need not be there."""
        self._follower = Follower(lake, ALERTS, COLUMNS)

    def poll_s(self, wanted_s: float) -> float:
        """How often to ask `has_news`; see `Follower.poll_s`."""
        return self._follower.poll_s(wanted_s)

    def has_news(self) -> bool:
        """Whether there are commits that `read` has not seen; see `Follower.has_news`."""
        return self._follower.has_news()

    def read(self, oldest_us: int) -> list[AlertEpisode]:
        """Episodes that have changed since the last call and were over the threshold after `oldest_us` (µs UTC).

        At first, and of a table that was made anew, all of the latter. Raises as `has_news`; then nothing counts as
        seen.
        """
        news = self._follower.read(lambda _table: f"last_trigger_at >= {delta_time(oldest_us)}")
        oldest = _EPOCH + timedelta(microseconds=oldest_us)
        episodes = (AlertEpisode.of(row) for row in news.rows.select(COLUMNS).to_pylist())
        newest = {episode.alert_id: episode for episode in episodes}  # several commits may have changed it
        return [episode for episode in newest.values() if episode.last_trigger_at >= oldest]
