"""The commands, one module for each kind of work; `cryptopulse.cli` assembles them.

Everything heavy is imported inside the commands: `cryptopulse --help` must answer at once.
"""
