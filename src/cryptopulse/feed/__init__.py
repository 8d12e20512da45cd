"""The feed: exchange → raw messages with their receive time → log.

`protocol` decides what follows from what the exchange says, without sockets or clocks; `exchange` and
`advanced` are the two dialects of Coinbase; `gaps` keeps track of missing trade ids; `client` owns the
sockets; `buffer` holds messages until the log has taken them; `rest` asks for the list of products;
`producer` puts them together.
"""
