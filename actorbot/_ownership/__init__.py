"""Who owns a store: one lease for all processes that can reach it.

`lease` decides, and touches nothing: who holds the lease, who may take it, what becomes of one
that ran out. `stays` knows which holders this process is. `keeper` takes a lease for a manager,
renews it beside everything else, and gives it back, by the time of `clock`; what keeps it from that
is an `obstacle`. Called by `_manager`, and by the command line, which shows who the owner is. The
stores keep the text and know nothing of it (docs/decisions/0028).
"""
