"""Several processes and machines that answer as one bot: `Cluster` sends events, a `Shard` has
the sessions of some users and handles their events.

Between them stands a log (Redis Streams). An event is accepted when the log has it, whoever owns
its session just then. Leases in the same server say which shard owns which sessions. `_log` has
the five operations that a log must offer.

A caller, from the top: `_cluster` (the verbs), `_receipt`, `_asking` (how an answer is awaited),
`_access` (who may call), `_caller` (batches to the log, and answers from it) with `_asked` (a
request on its way), and `_reports`.
"""

from actorbot.cluster._cluster import Cluster
from actorbot.cluster._receipt import ClusterReceipt
from actorbot.cluster._reports import ClusterStats, Member

__all__ = ["Cluster", "ClusterReceipt", "ClusterStats", "Member"]
