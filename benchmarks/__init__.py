"""What `make bench` measures: `python -m benchmarks --help`, and docs/benchmarks.md for what each figure means.

Each measurement is a module with a `measure…` function that returns a frozen dataclass of plain figures. What people
see of it is made in `benchmarks.tables`; `benchmarks.report` shows it.
"""

import cryptopulse.cli  # noqa: F401 - sets the environment of every command, before Arrow is imported
