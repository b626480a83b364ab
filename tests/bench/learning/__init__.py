"""The learning benchmark, `python -m tests.bench.learning`: the real loop with simulated members."""
