"""Members, conversations and the replies given in them."""
