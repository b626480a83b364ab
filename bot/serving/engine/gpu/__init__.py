"""What the engine does otherwise on a GPU, where each call of an operator costs more than its work."""
