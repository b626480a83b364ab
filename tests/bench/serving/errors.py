"""What can go wrong in a measurement.

BenchError
├── PeerMissingError   a peer's environment is not installed
└── PeerFailedError    a peer's process ended, was silent for too long, or says why it can't go on
"""

from __future__ import annotations

from bot.serving.errors import ServingError


class BenchError(ServingError):
    """A measurement could not be made; the text says why."""


class PeerMissingError(BenchError):
    """A peer's own environment is not there; the text names the command that installs it."""


class PeerFailedError(BenchError):
    """A peer did not start, ended, or refused; the text is its last word."""
