"""Notifications: sends alert episodes to people and machines, beside the pipeline and never in its way.

A process of its own reads `gold.dm_market_alerts` and sends messages through apprise::

    table.py ──episodes──▶ delivery.py ──notification──▶ render.py ──message──▶ channel.py ──▶ Slack, webhook, …
    the table of alerts    what is to be sent            as text and fields      apprise
                                ▲    └──────────── accepted ──────────────────────┘
                                └── notify.db            what each target has accepted, on disk

`episodes.py` and the outbox of `delivery.py` decide without I/O: rows, what a target knows and the time go in, the next
notification comes out. It is worked out anew for each attempt from the newest row and the ledger, so nothing waits in a
queue that could be lost or grow old. `notifier.py` is the process.

At least once: what a target has accepted is recorded after that, so a kill in between repeats that one message. Its
`alert_id` lets the receiver see that.
"""
