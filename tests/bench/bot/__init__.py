"""How the bot feels: the event loop's lag under load, and what the bot adds to the model's first words."""
