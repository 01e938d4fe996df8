"""How committed sessions reach the store: behind the turns, in batches, again after failures.

In reading order: `write` (what the flusher has of a session, and the states that a session goes
through), `dirty` (which sessions are to be written, and when), `flusher` with its `messages` (the
actor on the store's thread), `queue` (what is written next), `set_back` (which stored records are
older states of ours), `recovery` (a write that looks at the store: after a crash, or after a
conflict), `outcome` (what became of a batch), `retries` (what failed), `division` (a batch that was
refused goes in parts), `waiters` (who waits for a version), `letting_go` (which sessions must not
be read now), `fullness` (which sessions come near to `max_session_bytes`).

Turns, residents and the manager call `Flusher` and its `DirtySessions`, and read what `Flushable`
has. Nobody else comes here.
"""
