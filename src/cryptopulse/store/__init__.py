"""The lake's tables as Delta: appended to, replaced and read with their positions, fenced, repaired and maintained.

Nothing in here knows what a trade is: a table is its contract (`cryptopulse.lake.tables`).
"""
