"""The learning benchmark: `python -m tests.bench.learning [--quick]`, or `make bench-learning`.

A simulated community talks to the real thing: its model server, its database, its training runs, its gate.
It takes hours; `--quick` takes at most 40 minutes on two quiet cores. Stopped, it goes on where it was.
Histories are independent: `--seed` and `--scenario` choose some, also in several processes side by side;
`--results` then gathers what all of them have done.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from tests.bench.learning import plan, results
from tests.bench.learning.errors import BenchError
from tests.bench.learning.profile import BAD_KINDS, PROFILES, Profile, Scenario
from tests.bench.learning.state import State

OUT = Path("bench-results/learning")
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parsed = parse(arguments)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        profile = profile_of(parsed)
        out: Path = parsed.out / profile.name
        state = State(out / "steps", plan.plan(profile), _tell, results.product_commit())
        try:
            if parsed.publish:
                results.publish(profile, state)
            elif not parsed.results:
                plan.play(profile, state, out, parsed.models or out / "models")
        finally:
            # Also what a stopped benchmark has found so far.
            print(f"Results: {results.write(profile, state, out)}")
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds; at most 40 minutes")
    parser.add_argument("--seed", type=int, action="append", help="a seed; may be given several times")
    parser.add_argument("--scenario", action="append", help="a scenario; may be given several times")
    parser.add_argument("--rounds", type=int, help="rounds of each history (default: the profile's)")
    parser.add_argument(
        "--bad", action="append", choices=(*BAD_KINDS, "none"), help="bad challengers to try (default: all)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"where results and state go (default: {OUT})")
    parser.add_argument("--models", type=Path, help="a folder of prepared base models to share")
    parser.add_argument("--results", action="store_true", help="only write the results of what is done")
    parser.add_argument("--publish", action="store_true", help="write it to trainer/RESULTS.md")
    return parser.parse_args(arguments)


def profile_of(parsed: argparse.Namespace) -> Profile:
    """Return the profile with what was chosen of it.

    Raises:
        BenchError: there is no such scenario.
    """
    profile = PROFILES["quick" if parsed.quick else "full"]
    if parsed.seed:
        scenarios = tuple(replace(scenario, seeds=()) for scenario in profile.scenarios)
        profile = replace(profile, seeds=tuple(parsed.seed), scenarios=scenarios)
    if parsed.scenario:
        known = {scenario.name: scenario for scenario in profile.scenarios}
        if unknown := set(parsed.scenario) - known.keys():
            raise BenchError(f"There is no scenario {min(unknown)!r}; there are {', '.join(known)}.")
        profile = replace(profile, scenarios=tuple(known[name] for name in parsed.scenario))
    if parsed.rounds:
        scenarios = tuple(replace(scenario, rounds=parsed.rounds) for scenario in profile.scenarios)
        profile = replace(profile, scenarios=scenarios)
    if parsed.bad:
        profile = replace(profile, scenarios=tuple(_with_bad(each, parsed.bad) for each in profile.scenarios))
    return profile


def _with_bad(scenario: Scenario, kinds: Sequence[str]) -> Scenario:
    """Return a scenario with some of its bad challengers; retrains without signal need all of them."""
    chosen = tuple(kind for kind in scenario.bad_kinds if kind in kinds)
    return replace(scenario, bad_kinds=chosen, retrains=scenario.retrains and chosen == scenario.bad_kinds)


def _stop(*_: object) -> NoReturn:
    """End as Ctrl-C does, also in the background: server and run are stopped, results written."""
    raise KeyboardInterrupt


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
