"""An independent checker of a lake: is everything there, once, and do the tables agree?

It shares no code with the pipeline. It reads the Delta tables and computes with SQL of its own, so a fault of the
pipeline can't hide itself. `scope` defines what is audited, `snapshot` opens the tables and their files, `progress`
finds what is still on its way, `retention` what was let go on purpose, `ids`, `messages` and `absence` collect the
evidence for each trade id, `ledger` combines it, `contents`, `windows`, `hours`, `offsets` and `candles` compare, and
`report` is the result.
"""

from cryptopulse.audit.candles import CandleSource
from cryptopulse.audit.checker import Resources, audit
from cryptopulse.audit.report import Repairs, Report
from cryptopulse.audit.scope import AuditScope

__all__ = ["AuditScope", "CandleSource", "Repairs", "Report", "Resources", "audit"]
