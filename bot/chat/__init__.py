"""From a message to its answer: who asks, what the model is shown, what comes back."""
