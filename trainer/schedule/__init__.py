"""When runs start, in which order, and what is put right after a crash."""
