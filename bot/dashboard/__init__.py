"""What operators see in a browser: what the playground and `strop dashboard` share, and the latter."""
