"""Notifications: tells people and machines of alert episodes, beside the pipeline and never in its way.

A process of its own reads `gold.dm_market_alerts` and sends messages through apprise::

    table.py ──episodes──▶ outbox.py ──letter──▶ words.py ──message──▶ channel.py ──▶ Slack, webhook, …
    the table of alerts    what is to be told    as text and fields     apprise
                               ▲    └──────────── accepted ────────────────┘
                               └── ledger.py      what each target has been told, on disk

`episodes.py` and `outbox.py` decide without I/O: rows, what was told before and the time go in, what to tell next comes
out. A message is worked out anew for each attempt from the newest row and the ledger, so nothing waits in a queue that
could be lost or grow old. `delivery.py` is the thread of one target, `notifier.py` the process.

At least once: what a target was told is written down after it has accepted, so a kill in between repeats that one
message. Its `alert_id` tells the receiver.
"""
