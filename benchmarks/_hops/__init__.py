"""The programs of `python -m benchmarks cluster`. Each runs in a process of its own, takes its job
and then its orders on standard input, and ends when that is closed. Those of other systems run in
an environment of their own, so `_orders` imports only the standard library and the workload.
"""
