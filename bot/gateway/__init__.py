"""The connection to Discord: signing in, staying connected, and events that are malformed."""
