"""The stand-in for Discord itself, from the ground up: its world, its members, their interactions."""
