"""How fast, and at what price in memory: `python -m benchmarks session` and `python -m benchmarks residents`."""
