"""How fast, and at what price in memory: `python -m benchmarks --help` lists the questions, benchmarks/README.md says how to ask them."""
