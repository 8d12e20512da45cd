"""The HTTP API: what the lake holds, in pages, as JSON, Arrow or Parquet."""
