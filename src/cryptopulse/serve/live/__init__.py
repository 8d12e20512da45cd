"""The lake as it is now: commits are noticed, read once, and sent to all viewers."""
