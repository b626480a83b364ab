"""What every command and button shares: interactions, forms, languages, pictures."""
