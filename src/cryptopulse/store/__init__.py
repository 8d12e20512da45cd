"""Writes the lake's Delta tables: rows with positions, fencing, repair and maintenance.

No module here knows what a trade is: a table is given by its contract (`cryptopulse.lake.tables`).
"""
