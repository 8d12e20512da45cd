"""What `make bench-cluster` measures: the embedded engine and Spark beside each other, on the same topic of one broker.

Nothing is taken from what an engine says of itself: the moments are those of its Delta commits, the rest is what the
system says of its processes.
"""
