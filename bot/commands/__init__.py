"""The slash commands and buttons."""
