"""What the base makes of an answer to its question: hidden states as features of the reward model."""
