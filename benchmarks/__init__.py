"""How fast, and at what price in memory: `python -m benchmarks --help` lists the questions; README.md says how they are asked."""
