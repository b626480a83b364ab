"""What members show of a reply without rating it."""
