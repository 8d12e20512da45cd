"""The server: dashboard, HTTP API, health and metrics. Reads tables and status files, and writes none."""
