"""The feed: exchange → raw messages with their receive time → log.

`protocol` decides what follows from what the exchange says, without sockets or clocks; `sequence_gaps` keeps track of
missing trade ids; `client` owns the sockets; `buffer` holds messages until the log has taken them; `rest` requests
products and trades; `recovery` finds out how far the producer before had come; `event_log` logs what happens. What is
particular to an exchange is in `cryptopulse.venues`; `cryptopulse.producer` puts the parts together.
"""
