"""What a message holds: its words as people see them, and the text of its files."""
