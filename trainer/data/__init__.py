"""From rated replies to training examples: snapshot, labels, pairs, encoding."""
