"""CryptoPulse: a real-time lakehouse for crypto trades."""

__version__ = "0.1.0"
