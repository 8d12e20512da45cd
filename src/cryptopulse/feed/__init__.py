"""The feed: exchange → raw messages with their receive time → log.

`protocol` decides what follows from what the exchange says, without sockets or clocks; `exchange` and
`advanced` are the two dialects of Coinbase; `gaps` keeps track of missing trade ids; `client` owns the
sockets; `buffer` holds messages until the log has taken them; `rest` asks for products and trades; `resume`
knows how far the producer before had come; `lines` says what happens; `producer` puts them together.
"""
