"""What a message says and refers to, read as text: its words, what stands beside them, and its files."""
