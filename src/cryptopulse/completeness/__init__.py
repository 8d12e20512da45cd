"""Nothing missing, and proof of it.

`worklist` decides which page of the exchange's REST interface is asked for next, and what an answer means;
`looks` compares what the tables hold with what this producer knows; both without I/O. `heal` is the shell around
them: it asks, and puts the pages into the log. `tables` reads what the lake holds. `audit` checks a lake from outside,
with code of its own: which ids are there, which are not, and whether the tables agree.
"""
