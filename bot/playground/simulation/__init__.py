"""Simulated members: their tastes, their ratings, and the sample community."""
