"""How many questions a member may ask in a minute, where a server sets a limit."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import discord

from storage.admin.settings import Settings

WINDOW_S = 60.0
REMEMBERED = 10_000

Answer = Literal["yes", "no", "silence"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What to tell a member who asks too fast, and whether they have heard it already."""

    sentence: str
    told_before: bool


@dataclass
class _Member:
    asked_at: deque[float] = field(default_factory=deque)
    told: bool = False


def limit_for(held: Settings, role_ids: Iterable[int]) -> int:
    """Return how many questions a minute a member with these roles may ask; 0 is no limit.

    Where one or more of the roles have a limit of their own, the highest of these holds.
    """
    mine = set(role_ids)
    limits = [
        int(number)
        for role_id, _, number in (each.partition("=") for each in held.role_limits)
        if int(role_id) in mine
    ]
    if not limits:
        return held.messages_per_minute
    return 0 if 0 in limits else max(limits)


def role_ids_of(user: object) -> list[int]:
    """Return the roles of a server's member; none for a user in direct messages."""
    return [role.id for role in user.roles] if isinstance(user, discord.Member) else []


class MemberLimits:
    """Counts the questions of the last minute, by server and member."""

    def __init__(self) -> None:
        self._members: OrderedDict[tuple[int, int], _Member] = OrderedDict()

    def may_ask(self, guild_id: int | None, user_id: int, per_minute: int, now_s: float) -> Answer:
        """Count a question: "yes" within the limit (0: there is none), "no" the first time, then "silence".

        What is refused doesn't count, so that patience is always rewarded within a minute.
        """
        if per_minute <= 0:
            return "yes"
        member = self._member((guild_id or 0, user_id))
        while member.asked_at and now_s - member.asked_at[0] >= WINDOW_S:
            member.asked_at.popleft()
        if len(member.asked_at) < per_minute:
            member.asked_at.append(now_s)
            member.told = False
            return "yes"
        if member.told:
            return "silence"
        member.told = True
        return "no"

    def wait_s(self, guild_id: int | None, user_id: int, now_s: float) -> int:
        """Return after how many seconds the member may ask again."""
        asked_at = self._member((guild_id or 0, user_id)).asked_at
        return max(1, round(WINDOW_S - (now_s - asked_at[0]))) if asked_at else 1

    def _member(self, key: tuple[int, int]) -> _Member:
        member = self._members.setdefault(key, _Member())
        self._members.move_to_end(key)
        if len(self._members) > REMEMBERED:
            self._members.popitem(last=False)
        return member
