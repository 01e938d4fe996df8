"""How fast actorbot is, and how much memory it takes.

`python -m benchmarks --help` lists the questions. README.md says how each is measured.
"""
