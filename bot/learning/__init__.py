"""The loop as people see it on Discord: runs, adapters, votes, tastings and statistics."""
