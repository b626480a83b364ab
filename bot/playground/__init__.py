"""The local Discord stand-in and its web page."""
