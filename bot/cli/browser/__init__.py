"""Commands whose answer is a page in a browser."""
