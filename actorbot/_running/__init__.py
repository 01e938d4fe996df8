"""`bot.run()`: how a bot that is a program of its own begins, is told to end, and ends.

Read `run` first: the steps, from the start to the exit status. It is told to end by `signals`.
`threads` is what `asyncio.to_thread` runs on, and `shown` has the log's errors seen.

Only `_bot` and `cluster` may import this room, and `ext` and `cli` its `shown`.
"""
