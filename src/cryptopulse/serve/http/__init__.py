"""What stands before everything that is served: connections, token, names, origins, limits, errors."""
