"""Nothing missing, and proof of it.

`work_list` decides which page of the exchange's REST interface is requested next, and what an answer means; `reconcile`
compares what the tables hold with what this producer knows; both without I/O. `heal` is the shell around them: it
requests pages and puts them into the log. `backfill` does the same for history on request. `known_ids` reads what the
lake holds.
"""
