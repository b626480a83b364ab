"""`strop doctor`: what has to be right, looked at; nothing here changes anything."""
