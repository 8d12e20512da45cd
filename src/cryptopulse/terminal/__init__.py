"""Shows the running pipeline in a terminal."""
