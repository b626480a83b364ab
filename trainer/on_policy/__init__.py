"""The model's own replies: sampled, and ranked into pairs."""
