"""Where sessions are kept.

The rest of actorbot knows a store as a `RecordStore`, and a driver of your own as a `SessionStore`.

Read `base` first: what a store is. Then one store: `memory`, `file` (with `_folder`, its lock and
its name), `redis` or `mongo`, or `driver`, which makes a store of your four methods (with
`_driver_calls`, for `def` and `async def`). `redis` and `mongo` have files of their own for the
`_link` to the server, its URL and connections (`_redis_pool`, `_redis_silence`, `_mongo_url`), what
the server is (`_server`) and lets its user do (`_rights`), what was `_damage`d, and documents.
`_server_clock` keeps ends by a server's clock. `_lease` is what a store does that several processes
can reach: `_redis_lease` and `_mongo_lease` do it.

What all of them use: `_batches` (whose fault is it that a call about many failed?), `_findings` (of
`actorbot doctor`), `_secrets` (what no error may show), `_users` (several managers with one store),
`_ids` and `_scheme`. On top, `url` makes a store by its URL, and `_copy` moves sessions.

Flushing, residents, the manager, `testing` and `cli` import this package.
"""

from actorbot.stores._copy import CopyReport, copy
from actorbot.stores._findings import Finding
from actorbot.stores.base import ONE_YEAR, LeaseFound, Record, RecordStore, SessionStore, Verdict, Write, judge
from actorbot.stores.file import FileSessionStore
from actorbot.stores.memory import MemorySessionStore
from actorbot.stores.url import store_from_url

__all__ = [
    "ONE_YEAR",
    "CopyReport",
    "FileSessionStore",
    "Finding",
    "LeaseFound",
    "MemorySessionStore",
    "Record",
    "RecordStore",
    "SessionStore",
    "Verdict",
    "Write",
    "copy",
    "judge",
    "store_from_url",
]
