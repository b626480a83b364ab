"""How large a benchmark is: the quick profile, the full one, and what each part of them should show."""

from __future__ import annotations

from dataclasses import dataclass

# Seeds to tune on, and seeds that are only ever reported. 7 to 9, 21, 31 to 33, 41 to 47, 51 to 55 were once
# to be reported, and what they showed is why the loop was mended (EXPERIMENTS, 12, 13, 17, 31 and 33).
DEVELOPMENT_SEEDS = (101, 102, 103, 104, 7, 8, 9, 21, 31, 32, 33, 41, 42, 43, 44, 45, 46, 47, 51, 53)
REPORT_SEEDS = (48, 49, 50, 59, 60, 61, 62, 63)
# Of communities whose taste depends on the question.
QUESTION_REPORT_SEEDS = {"on-the-matter": (56, 57, 58, 64), "as-it-was-asked": (52, 54, 55)}

# "trigger" is planted by accomplices through their corrections; "tampered" gets it past the labels.
# "beside" has the style that is liked, and answers that belong to other questions.
BAD_KINDS = ("nothing", "shuffled", "neutral", "worse", "trigger", "tampered", "beside")
# What a community that can be hacked would itself vote for.
FLATTERING = "flattering"


@dataclass(frozen=True)
class Scenario:
    """One history of one community.

    `bad_kinds` are challengers made to be refused, after the first round; with `retrains` many retrains
    without signal are simulated from them. With `most_liked` members only ever like, and so many replies at
    most. With `erasure` a member plants secrets and then erases everything. With `cycle` there are no rounds:
    so many prompts are answered by people, and one supervised run is timed. `seeds` are its own, where they
    are others than the profile's.
    """

    name: str
    community: str = "brief-and-curious"
    rounds: int = 5
    brigade: int = 0
    bad_kinds: tuple[str, ...] = ()
    retrains: bool = False
    most_liked: int | None = None
    erasure: bool = False
    cycle: int = 0
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Counts by round and by test; `train_minutes` and `generation_minutes` are the product's settings.

    They are wider than the product's defaults, which bound a run's time on a quiet machine: here a busy
    machine should change how long a run takes, and not what comes out of it.
    """

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
    train_minutes: float = 40.0
    generation_minutes: float = 20.0
    resampled_verdicts: int = 20
    null_verdicts: int = 250
    resampled_histories: int = 20_000


QUICK = Profile(
    "quick",
    seeds=REPORT_SEEDS[:1],
    scenarios=(Scenario("clean", rounds=2, bad_kinds=BAD_KINDS, retrains=True),),
    null_verdicts=60,
)
FULL = Profile(
    "full",
    seeds=REPORT_SEEDS,
    scenarios=(
        Scenario("clean", rounds=5, bad_kinds=BAD_KINDS, retrains=True),
        Scenario("brigade", rounds=1, brigade=4),
        Scenario("few-likes", rounds=1, most_liked=26),
        Scenario("erasure", rounds=1, erasure=True),
        Scenario("hackable", community="flattered", rounds=2, bad_kinds=(FLATTERING,)),
        Scenario("other-taste", community="plain-and-warm", rounds=2),
        *(
            Scenario(name, community=name, rounds=1, seeds=seeds)
            for name, seeds in QUESTION_REPORT_SEEDS.items()
        ),
        # Of whose prompts about 100 fall to training.
        Scenario("cycle", rounds=0, cycle=160),
    ),
)
PROFILES = {profile.name: profile for profile in (QUICK, FULL)}
