"""What is learned from and what comes of it: eligible rows, runs, adapters, trials."""
