"""Faults that were seeded on purpose: each is applied to a copy of the tree, and a named test must
fail there (`make mutants`).
"""
