"""One run from snapshot to swap, in a process of its own."""
