"""Gradient steps on a LoRA adapter: phases, the loop that takes their steps, and the terms of the loss."""
