"""What can go wrong between a caller and the model server.

ServingError
├── ServerUnavailableError   nothing (usable) answers at the server's address
│   └── ConnectionBrokenError it had begun to, or seemed to: asked again, another may
├── ServerLoadingError       the server is up, its model is not loaded yet
├── ServerBusyError          the queue is full; ``retry_after_s`` says when to come back
├── ReplyFailedError         the engine could not finish the request; ``code`` says why
├── UnknownModelError        no base or loaded adapter has this name
├── RequestRejectedError     the request itself is wrong (too long, out of range)
│   └── PicturesRefusedError  it has pictures, which may be what is wrong with it
├── AdapterRefusedError      an adapter folder failed a check
│   └── AdapterDamagedError  a file of it is missing, or its hash differs: it will never be right again
├── BaseRefusedError         the base model is missing, unsupported or too large for this machine
│   └── BaseUnreachableError the hub that has it does not answer now; asked again later, it may
└── ServerStartError         the server cannot listen where it was told to
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from bot.serving.messages import Message, Value

FailureCode: TypeAlias = Literal["deadline", "shutting_down", "internal"]


class ServingError(Exception):
    """Base of every error of the model server and its client: one sentence for a person.

    It is made of a template and values, so that it can be translated where it is shown.
    """

    def __init__(self, template: str, /, **values: Value) -> None:
        self.message = template if isinstance(template, Message) else Message(template, **values)
        super().__init__(self.message)


class ServerUnavailableError(ServingError):
    """Nothing usable answers at the model server's address, or it stopped answering."""


class ConnectionBrokenError(ServerUnavailableError):
    """The connection ended before the answer did: its server died, which another one may stand in for."""


class ServerLoadingError(ServingError):
    """The model server is up but still loads its model."""


class ServerBusyError(ServingError):
    """The model server's queue is full.

    ``retry_after_s`` is the server's own estimate in seconds.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownModelError(ServingError):
    """The server has neither a base nor a loaded adapter of the requested name."""


class ReplyFailedError(ServingError):
    """The engine began a request and could not finish it (inside the server; callers see an HTTP status)."""

    def __init__(self, message: str, code: FailureCode) -> None:
        super().__init__(message)
        self.code: FailureCode = code


class RequestRejectedError(ServingError):
    """The request itself cannot be served; the text names what to change, ``param`` the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PicturesRefusedError(RequestRejectedError):
    """A request with pictures was refused; without them it may be served."""


class AdapterRefusedError(ServingError):
    """An adapter folder failed a check; the text names the check."""


class AdapterDamagedError(AdapterRefusedError):
    """A file of an adapter is missing or has another hash than its manifest says.

    Only this is proof against the adapter itself. Every other refusal may be our fault or the machine's (a
    path, a permission, too many open files, another base), and the adapter may pass the next check.
    """


class BaseRefusedError(ServingError):
    """A base model is missing, unsupported, damaged or too large for this machine."""


class BaseUnreachableError(BaseRefusedError):
    """The hub that a base comes from does not answer now; nothing is known against the base itself."""


class ServerStartError(ServingError):
    """The server cannot start as configured (port in use, no key on a public address)."""
