"""Both tiers of a profile, one after the other, and the plan of their steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from storage.config_sections import GateConfig
from tests.bench.learning import resampling
from tests.bench.learning.profile import Profile
from tests.bench.learning.real_runs import History
from tests.bench.learning.state import State
from tests.bench.learning.tastes import COMMUNITIES


def histories(profile: Profile, out: Path) -> list[History]:
    """Return every history of a profile, each with a home of its own below `out`."""
    return [
        History(profile, scenario, seed, out / "homes" / f"{seed}-{scenario.name}")
        for scenario in profile.scenarios
        for seed in scenario.seeds or profile.seeds
    ]


def plan(profile: Profile) -> list[str]:
    """Return the names of all steps, in order."""
    found = []
    for history in histories(profile, Path()):
        found += history.steps()
        if history.scenario.bad_kinds:
            found += [f"{history.name}/verdicts/{kind}" for kind in history.stored_runs]
            found += [f"{history.name}/retrains"] * history.scenario.retrains
    return found


def play(profile: Profile, state: State, out: Path, models: Path) -> None:
    """Do every step that is not done yet."""
    for history in histories(profile, out):
        history.play(state, models)
        if history.scenario.bad_kinds:
            _resample(profile, history, state)


def _resample(profile: Profile, history: History, state: State) -> None:
    found = {kind: state.result(step)["run"] for kind, step in history.stored_runs.items()}
    stored = resampling.load(history.home, found)
    people = [member for member in history.people(1) if member.kind != "brigade"]
    settings, seed = GateConfig(), history.seed

    def verdicts(kind: str) -> dict[str, int] | None:
        for each in stored:
            if each.kind == kind:
                return resampling.verdicts(each, settings, people, profile.resampled_verdicts, seed)
        return None

    def retrains() -> dict[str, Any]:
        return resampling.retrains_without_signal(
            [each for each in stored if each.kind not in ("honest", "trigger", "tampered")],
            settings,
            people,
            COMMUNITIES[history.scenario.community],
            verdicts_each=profile.null_verdicts,
            histories=profile.resampled_histories,
            seed=seed,
        )

    for kind in history.stored_runs:
        state.do(f"{history.name}/verdicts/{kind}", partial(verdicts, kind))
    if history.scenario.retrains:
        state.do(f"{history.name}/retrains", retrains)
