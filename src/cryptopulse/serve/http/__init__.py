"""Common to all that is served: connections, token, host names, origins, limits, errors."""
