"""Learning from ratings: snapshot, train, evaluate, decide, swap."""
