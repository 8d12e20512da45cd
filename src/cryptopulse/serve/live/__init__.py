"""The live state of the lake: new commits are read once and sent to all viewers."""
