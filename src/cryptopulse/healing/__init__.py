"""Healing: fetches missing trades over REST, and proves which ids are absent.

`work_list` decides which page of the exchange's REST interface is requested next, and what an answer means; `reconcile`
finds ids that the tables lack; both do no I/O. `heal` does it for them: it requests pages and puts them into the log.
`backfill` fetches history on request. `known_ids` reads the ids held and absent from the tables.
"""
