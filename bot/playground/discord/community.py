"""The people and places of the playground: one server whose ids are the same after every restart.

The bot's database outlives the playground's memory, so a member met yesterday must be the same member today.
"""

from dataclasses import dataclass

#: 2015-01-01, the origin of Discord's snowflakes, in milliseconds since 1970.
DISCORD_EPOCH_MS = 1_420_070_400_000

# Snowflakes of 2024-01-01: older than anything a running playground makes, and recognisable.
_FIRST_ID = (1_704_067_200_000 - DISCORD_EPOCH_MS) << 22

GUILD_ID = _FIRST_ID + 1
BOT_ID = _FIRST_ID + 2
APPLICATION_ID = BOT_ID
GENERAL_ID = _FIRST_ID + 101
LAB_ID = _FIRST_ID + 102
REHEARSAL_ID = _FIRST_ID + 103


@dataclass(frozen=True)
class Person:
    """A member of the server. `simulated` members are played by the rehearsal, the others by the visitor."""

    user_id: int
    dm_channel_id: int
    username: str
    display_name: str
    color: str
    simulated: bool


@dataclass(frozen=True)
class Place:
    """A text channel of the server."""

    channel_id: int
    name: str
    topic: str


GUILD_NAME = "Strop Playground"
BOT_NAME = "Strop"

PLACES = (
    Place(
        GENERAL_ID,
        "general",
        "Talk to Strop: mention it or reply to it, then rate its answers with 👍 and 👎.",
    ),
    Place(LAB_ID, "lab", "For the operators: /retrain, /status, /adapters."),
    Place(REHEARSAL_ID, "rehearsal", "Simulated members talk and rate here. Nobody in this channel is real."),
)

_HUMANS = (
    ("you", "You", "#5865f2"),
    ("ada", "Ada", "#e67e22"),
    ("grace", "Grace", "#1abc9c"),
    ("linus", "Linus", "#e91e63"),
)

_SIMULATED = (
    ("Mara", "#9b59b6"),
    ("Ozan", "#2ecc71"),
    ("Priya", "#f1c40f"),
    ("Tomasz", "#3498db"),
    ("Ines", "#e74c3c"),
    ("Kofi", "#11806a"),
    ("Yuki", "#c27c0e"),
    ("Lars", "#ad1457"),
    ("Noor", "#206694"),
    ("Elio", "#a84300"),
)


def _people() -> tuple[Person, ...]:
    humans = [
        Person(_FIRST_ID + 1001 + n, _FIRST_ID + 2001 + n, username, name, color, simulated=False)
        for n, (username, name, color) in enumerate(_HUMANS)
    ]
    simulated = [
        Person(
            _FIRST_ID + 1101 + n,
            _FIRST_ID + 2101 + n,
            f"{name.lower()}·sim",
            f"{name} (simulated)",
            color,
            simulated=True,
        )
        for n, (name, color) in enumerate(_SIMULATED)
    ]
    return (*humans, *simulated)


PEOPLE = _people()
OWNER = PEOPLE[0]
SIMULATED = tuple(person for person in PEOPLE if person.simulated)

#: A rehearsal's crowd can be larger than the members who are always there.
MAX_CROWD = 60
_GUEST_COLOR = "#7f8c8d"


def crowd(count: int) -> tuple[Person, ...]:
    """The first `count` simulated members; those beyond the ones who are always there are guests."""
    guests = tuple(
        Person(
            _FIRST_ID + 1101 + n,
            _FIRST_ID + 2101 + n,
            f"guest{n + 1}·sim",
            f"Guest {n + 1} (simulated)",
            _GUEST_COLOR,
            simulated=True,
        )
        for n in range(len(SIMULATED), count)
    )
    return (*SIMULATED[:count], *guests)
