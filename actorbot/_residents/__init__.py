"""Which sessions are in memory: how each comes, gets its turn, and leaves.

Read `table` first: the sessions by id, and the ways out of memory. Then `activation`, which brings
a session in and gives its turn, with `room` (space for one more), `loader` (its record from the
journal or the store) and `backoff` (records that cannot be read). What goes on in the background:
`sweeper` lets the idle and the expired leave, with `idle` as its memory, `replay` brings to the
store what only the journal has, and `anew` what a store has lost that has gone back in time.
`abandon` lets sessions go that are another process's now.

Only `_manager` may import this room. The parts are made, and handed to each other, in
`_manager/parts.py`.
"""
