"""The feed: exchange → raw messages with their receive time → log.

`protocol` is the session core, without sockets or clocks; `sequence_gaps` tracks missing trade ids; `client` has the
sockets; `buffer` holds messages until the log has acknowledged them; `rest` requests products, trades and candles;
`recovery` finds the last ids that the previous producer recorded; `event_log` logs events. Code for one exchange is in
`cryptopulse.venues`; `cryptopulse.producer` puts the parts together.
"""
