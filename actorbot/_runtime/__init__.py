"""Where code runs, and what time it is. This room knows no session.

Read `home` first: what turns need of the place where they run. `loop_home` is an event loop,
`thread_home` the threads of those who call; `current` says which turn the running code is part of.
Then `mailbox`, the line in front of an actor, and `actor`, our base on pykka. `threads` has the
pool for user code, `deadline_thread` the thread on which a store is called, `clock` the time and
its timers. Small tools: `once` (one of several takes it), `file_lock` (one process has the file),
`forks` (what a forked child leaves to its parent), `process` (which one this is, and whether one
is gone), `locked` (how it is said that somebody else has something) and `task_group` (a fault of
asyncio's).

Every room above may import this one; stores and the journal take only threads, the clock,
file locks and what these are made of.
"""
