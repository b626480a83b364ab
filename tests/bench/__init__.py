"""The benchmarks: `python -m tests.bench.storage`, `.bot`, `.serving`, `.learning`, `.training_speed`."""
