"""What each query costs at scale: `python -m tests.bench.storage`."""
