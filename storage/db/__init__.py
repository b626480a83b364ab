"""The database itself: connection, migrations, SQL, clock, key-value store."""
