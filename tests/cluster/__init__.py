"""Shards as processes, on a real server, under load: killed, frozen, cut off, deployed.

Each test sends events as a platform does, and then counts every session in the store against what
was acknowledged. Each is also run with a fence taken out, and must then find fault.

`_shard` is the process, `_shards` starts and ends such processes, `_load` sends the events and is
the judge, `_fences` are what can be taken out.
"""
