"""What can go wrong in the bot.

BotError
├── StartupError            the bot can't run as configured; ``exit_code`` says whether a restart helps
│   ├── PlaygroundError     the local playground is missing, or a real token would be sent to it
│   ├── TokenRefusedError   Discord does not accept the token
│   └── IntentsMissingError a switch in Discord's developer portal is off
├── IdentifyBudgetError     this hour's gateway sign-ins are used up
├── ContextError            not even the newest message fits the model's context
└── DeliveryError           Discord does not take a message
    ├── ChannelRefusedError the bot may not write there
    │   ├── ChannelGoneError    the channel was deleted
    │   └── ThreadClosedError   the thread was archived or locked
    └── MessageGoneError    the message was deleted
"""

from __future__ import annotations

EXIT_NEEDS_A_PERSON = 3
"""Exit code for what a restart can't cure."""


class BotError(Exception):
    """Base of every error of the bot; the text is one sentence for a person."""


class StartupError(BotError):
    """The bot can't run as configured."""

    exit_code = EXIT_NEEDS_A_PERSON


class PlaygroundError(StartupError):
    """The local playground is missing, or what it offers must not be used."""


class TokenRefusedError(StartupError):
    """Discord does not accept the token."""


class IntentsMissingError(StartupError):
    """The application lacks a privileged intent that the configuration needs."""


class IdentifyBudgetError(BotError):
    """This hour's gateway sign-ins are used up; signing in has to wait."""


class ContextError(BotError):
    """Not even the newest message fits into the model's context."""


class DeliveryError(BotError):
    """Discord does not take a message at the moment."""


class TextRefusedError(DeliveryError):
    """Discord's filters don't let a text through, however often it is sent."""


class ChannelRefusedError(DeliveryError):
    """The bot may not write in this channel."""


class ChannelGoneError(ChannelRefusedError):
    """The channel was deleted."""


class ThreadClosedError(ChannelRefusedError):
    """The thread was archived or locked; nobody has to give the bot anything for it."""


class MessageGoneError(DeliveryError):
    """The message to change was deleted."""
