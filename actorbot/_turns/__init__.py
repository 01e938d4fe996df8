"""One event's stay in its session: the turn.

Read `context` first: what a handler holds, and the table of a turn's states. Then `session_actor`:
how a turn begins, runs the handler, and commits or rolls back. Other files hold what happens
beside the usual turn: `ready` (it waits to begin), `overdue` (its time is up), `cancelled` (by its
caller), `acknowledge` (its answer waits for the store or the journal), `lend` (code outside of
handlers borrows it), `told` (nobody waits for it), `terms` (its replies are held from outside),
`destroy` (the session ends), `deadlock` (turns that wait for each other) and `depth` (turns inside
each other).
`shared` is what all turns of a manager need: among it `hooks`, the author's functions, and
`outbox`, the replies on their way, with `reply_room`, their bound, and `answers`, for duplicates.

`_residents` and `_manager` import this room. `actorbot.ext` may import `Context`, no more.
"""
