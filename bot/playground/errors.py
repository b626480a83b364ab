"""What can go wrong in the playground, as a tree:

StandInError
├── ActionRefusedError     a visitor asked for something Discord would not allow (HTTP 4xx, one sentence)
├── RestError              a REST call of the bot failed, with Discord's status and JSON body
├── PortInUseError         another program holds the configured port
├── SampleError            the sample community can't be loaded or built
└── RehearsalError         a rehearsal can't be started or went wrong
"""

from typing import Any


class StandInError(Exception):
    """Base of every error the playground raises on purpose."""


class ActionRefusedError(StandInError):
    """An action of a visitor or a simulated member that Discord would refuse; the text says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RestError(StandInError):
    """A failed REST call, in Discord's own terms."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body.get("message", status)))
        self.status = status
        self.body = body


class PortInUseError(StandInError):
    """The configured port is taken."""


class SampleError(StandInError):
    """The sample community can't be loaded or built."""


class RehearsalError(StandInError):
    """A rehearsal can't start or can't go on."""
