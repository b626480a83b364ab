"""How large a benchmark is: the quick profile, the full one, and what each part of them should show."""

from __future__ import annotations

from dataclasses import dataclass

# Seeds to tune on, and seeds that are only ever reported.
DEVELOPMENT_SEEDS = (101, 102, 103)
REPORT_SEEDS = (7, 8, 9)

# "trigger" is planted by accomplices through their corrections; "tampered" gets it past the labels.
BAD_KINDS = ("nothing", "shuffled", "neutral", "worse", "trigger", "tampered")


@dataclass(frozen=True)
class Scenario:
    """One history of one community; `bad_kinds` are challengers made to be refused, after the first round."""

    name: str
    community: str = "brief-and-curious"
    rounds: int = 5
    brigade: int = 0
    bad_kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Counts by round and by test; `train_minutes` and `generation_minutes` are the product's settings."""

    name: str
    seeds: tuple[int, ...]
    scenarios: tuple[Scenario, ...]
    members: int = 20
    trolls: int = 1
    prompts: int = 128
    replies: int = 2
    test_prompts: int = 32
    test_replies: int = 2
    oracle_replies: int = 4
    max_new_tokens: int = 40
    train_minutes: float = 5.0
    generation_minutes: float = 3.0
    bad_train_minutes: float = 1.0
    bad_generation_minutes: float = 1.0
    resampled_verdicts: int = 20
    null_verdicts: int = 250
    resampled_histories: int = 20_000


QUICK = Profile(
    "quick",
    seeds=REPORT_SEEDS[:1],
    scenarios=(Scenario("clean", rounds=2, bad_kinds=BAD_KINDS),),
    prompts=96,
    train_minutes=3.0,
    generation_minutes=1.5,
    bad_train_minutes=0.7,
    bad_generation_minutes=0.7,
    null_verdicts=60,
)
FULL = Profile(
    "full",
    seeds=REPORT_SEEDS,
    scenarios=(
        Scenario("clean", rounds=5, bad_kinds=BAD_KINDS),
        Scenario("brigade", rounds=1, brigade=4),
        Scenario("other-taste", community="plain-and-warm", rounds=2),
        Scenario("hackable", community="flattered", rounds=2),
    ),
)
PROFILES = {profile.name: profile for profile in (QUICK, FULL)}
