"""The journal: an acknowledged event is on this machine's disk until the store has it.

In reading order: `ahead` (what is to be committed, and who waits), `entry` (a row, from and to
bytes), `journal` (groups of entries, on a thread of its own), `commits` (a group's way to the
file), `places` (which row has which session's entry), `removals` (what is no longer needed),
`untold` (callers that are still to be told), `file` (the rows in SQLite), `names` (have its files
their names?), `wal` (is SQLite's log whole?).

Turns hand a `Journal` what they have committed, the flusher tells it what the store has, and
residents read from it. The manager makes it.
"""
