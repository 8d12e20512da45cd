"""The running pipeline as a terminal shows it."""
