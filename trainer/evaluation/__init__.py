"""How good a challenger is: replies on held-out prompts, their scores, their statistics."""
