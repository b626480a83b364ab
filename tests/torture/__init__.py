"""What must hold whatever happens, tried hard: `make torture` runs it and prints one table."""
