"""Five minutes on a GPU: is our engine right there, how fast, and what does a training take?"""
