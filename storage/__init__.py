"""SQLite storage: everything Strop knows, and nothing it computes."""
