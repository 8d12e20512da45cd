"""Notifications: sends alert episodes to people and machines, without delaying the pipeline.

A separate process reads `gold.dm_market_alerts` and sends messages through apprise::

    table.py ──episodes──▶ delivery.py ──notification──▶ render.py ──message──▶ channel.py ──▶ Slack, webhook, …
    the table of alerts    what is to be sent            as text and fields      apprise
                                ▲    └──────────── accepted ──────────────────────┘
                                └── notify.db            what each target has accepted, on disk

`episodes.py` and the outbox of `delivery.py` do no I/O: rows, what each target has accepted, and the time go in; the
next notification comes out. It is computed for each attempt from the newest row and the ledger, so there is no queue of
messages that could get lost or outdated. `notifier.py` is the process.

At least once: an acceptance is recorded after it happened, so a kill in between repeats that one message. The receiver
can recognize it by its `alert_id`.
"""
