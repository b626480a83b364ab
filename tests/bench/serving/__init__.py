"""The model server's benchmark: against other servers, across swaps, beside training, for the trainer.

``python -m tests.bench.serving --help`` says how to run it. Sides take turns within one run, since a busy
machine drifts by tens of percent within minutes; figures are medians, per second of processor time.
"""
