"""What the bot says in every language: catalogues, and sentences of the other parts."""
