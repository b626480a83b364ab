"""How a reply reaches Discord: split, streamed and edited within its limits."""
