"""Tests of the commands, the benchmarks, the examples, the pages and the tree itself."""
