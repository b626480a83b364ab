"""How the bot feels: the event loop's lag under load, and what it adds to the model's time to the first word."""
