"""The learning benchmark, `python -m trainer.bench`: the real loop with simulated members."""
