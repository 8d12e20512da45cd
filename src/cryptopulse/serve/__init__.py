"""Shows what the pipeline has made. Reads tables and status files, writes none."""
