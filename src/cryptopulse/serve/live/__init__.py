"""What is going on in the lake now: commits noticed, read once, and handed to everybody who looks."""
