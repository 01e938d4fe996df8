"""Several processes and machines that answer as one bot: `Cluster` sends events, a `Shard` has
the sessions of some users and handles their events.

Between them stands a log (Redis Streams). An event is accepted when the log has it, whoever owns
its session just then. Leases in the same server say which shard owns which sessions. `_log` has
the five operations that a log must offer.

`_redis_log` offers them: read `_script` first, which says what is in the server, and the scripts,
`_lease_scripts` and `_scripts`, which decide everything (`_rights`: what they need). Then `_wire`
(a connection), `_place` (where the server is), `_line` (the two, again and again), and the log.

A caller, from the top: `_cluster` (the verbs), `_receipt`, `_asking` (how an answer is awaited),
`_access` (who may call), `_caller` (batches to the log, and answers from it) with `_asked` (a
request on its way) and `_waiting` (for how long), and `_reports`.

A shard: `_shard` (its life), `_membership` (its lease), `_intake` (reads the log), `_lane` (events
of one session, in order), `_settling` (answers, and what leaves the log), `_hand_over`, `_leaving`
(its end), and what these share: `_holding`, `_held`, `_handling`, `_figures`.
"""

from actorbot.cluster._cluster import Cluster
from actorbot.cluster._figures import ShardStats, SlotInfo
from actorbot.cluster._receipt import ClusterReceipt
from actorbot.cluster._reports import ClusterStats, Member
from actorbot.cluster._shard import Shard

__all__ = ["Cluster", "ClusterReceipt", "ClusterStats", "Member", "Shard", "ShardStats", "SlotInfo"]
