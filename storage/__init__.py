"""Everything Strop remembers: configuration, the SQLite database, and what may be done with its rows."""
