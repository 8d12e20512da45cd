"""The Spark engine: Structured Streaming runs the SQL, Delta Lake commits. For when one machine is not enough.

The tables, their contracts and their statements are those of the embedded engine. The difference is that each step
(bronze, silver, alerts, prices) is a streaming query of its own with a checkpoint, so steps can run in one process or
in four, on one machine or on a cluster. Each works through `foreachBatch`:

- rows are appended, or a part of a table is replaced, under the query's `txnAppId` and the batch's number: Delta takes
  a batch once, however often it is repeated, and a second driver on the same checkpoint fails to commit;
- everything else that a step needs is read from the tables, so a lost checkpoint costs only time.
"""
