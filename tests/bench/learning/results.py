"""What came out, for scripts (JSON), for people (a Markdown table) and for the eye (an SVG plot)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.learning.claims import claims, table
from tests.bench.learning.errors import BenchError
from tests.bench.learning.plan import histories
from tests.bench.learning.plot import Point, compared, plotted
from tests.bench.learning.profile import Profile
from tests.bench.learning.real_runs import History
from tests.bench.learning.state import State

ROOT = Path(__file__).parents[3]
BEGIN, END = "<!-- learning: made by python -m tests.bench.learning --publish -->", "<!-- /learning -->"
PAGE_FILE = "trainer/RESULTS.md"
RESULTS_FILE = "deploy/results/learning.json"
PICTURE_FILE = "deploy/images/learning.svg"
PRODUCT = ("bot", "storage", "trainer")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "chitchat-dataset")


def write(profile: Profile, state: State, out: Path) -> Path:
    """Write results.json, results.md and one plot a scenario from the steps that are done."""
    found = gather(profile, state)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    for scenario in profile.scenarios:
        mine = [each for each in found["histories"] if each["scenario"] == scenario.name]
        if mine:
            (out / f"{scenario.name}.svg").write_text(plotted(scenario.name, points(mine)), encoding="utf-8")
    (out / "results.md").write_text(markdown(found), encoding="utf-8")
    return out / "results.md"


def publish(profile: Profile, state: State) -> None:
    """Make what is done the section of trainer/RESULTS.md, with its numbers and a plot in deploy/.

    Raises:
        BenchError: the page has no place for it.
    """
    page = ROOT / PAGE_FILE
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise BenchError(f"{PAGE_FILE} needs the lines {BEGIN} and {END} once each.")
    found = gather(profile, state)
    kept = json.dumps(_without_samples(found), indent=1, ensure_ascii=False)
    (ROOT / RESULTS_FILE).write_text(f"{kept}\n", encoding="utf-8")
    (ROOT / PICTURE_FILE).write_text(_picture(found), encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    section = "\n".join([BEGIN, *_section(found), END])
    page.write_text(before + section + after, encoding="utf-8")


def _picture(found: dict[str, Any]) -> str:
    """Return utility by round where a style's histories have several; else champion and base by history."""
    clean = _furthest([each for each in found["histories"] if each["scenario"] == "clean"])
    by_round = points(clean)
    if len(by_round) > 2:
        return plotted("A simulated community", by_round)
    return compared("After one round", _outcomes(found))


def _outcomes(found: dict[str, Any]) -> list[tuple[str, Point]]:
    return [
        (
            f"{history['scenario']} {history['seed']}",
            _point(1, [_figures(history, measured, first["drifted"])]),
        )
        for history in found["histories"]
        for first in history["rounds"][:1]
        if first["measure"] and (measured := first["measure"]["utility"])
    ]


def _furthest(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the histories that have come to the last round that any has come to."""
    rounds = [sum(bool(each["measure"]) for each in history["rounds"]) for history in found]
    return [history for history, count in zip(found, rounds, strict=True) if count == max(rounds)]


def _section(found: dict[str, Any]) -> list[str]:
    return [
        f"![Utility of the champion](../{PICTURE_FILE})",
        "",
        f"{_made_with(found)} Every number behind it: [{RESULTS_FILE}](../{RESULTS_FILE}).",
        "",
        *table(claims(found)),
    ]


def _without_samples(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out the replies: they answer messages of a data set that is not ours to publish."""
    for history in found["histories"]:
        for each in history["rounds"]:
            if each["measure"]:
                each["measure"] = {k: v for k, v in each["measure"].items() if k != "samples"}
    return found


def gather(profile: Profile, state: State) -> dict[str, Any]:
    """Return every result with what it was made with."""
    return {
        "profile": profile.name,
        "seeds": list(profile.seeds),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": _versions(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "seconds": round(state.total_s),
        "histories": [_history(each, state) for each in histories(profile, Path())],
    }


def product_commit() -> str | None:
    """Return the last commit that changed the product's code, None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%h", "--"]
    try:
        told = subprocess.run(
            [*command, *(f"{package}/*.py" for package in PRODUCT)],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip() or None


def _versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    versions = {name: installed.get(name, "not installed") for name in PACKAGES}
    return {"python": platform.python_version(), **versions}


def _history(history: History, state: State) -> dict[str, Any]:
    name = history.name
    rounds = [
        {
            "round": number,
            "drifted": history.drifted(number),
            **{step: state.result(f"{name}/{number}/{step}") for step in ("chat", "run", "measure")},
        }
        for number in range(1, history.scenario.rounds + 1)
    ]
    base = state.result(f"{name}/base")
    return {
        "seed": history.seed,
        "scenario": history.scenario.name,
        "community": history.scenario.community,
        "base": None if base is None else {key: value for key, value in base.items() if key != "replies"},
        "rounds": [each for each in rounds if each["chat"]],
        "erasure": state.result(f"{name}/erase"),
        "cycle": state.result(f"{name}/cycle"),
        "seconds": round(state.seconds(_of_rounds(history))),
        "days": state.kept(name, "day"),
        "commits": state.kept(name, "commit"),
        "bad": {kind: state.result(f"{name}/bad/{kind}") for kind in history.scenario.bad_kinds},
        "verdicts": {
            kind: ends for kind in history.stored_runs if (ends := state.result(f"{name}/verdicts/{kind}"))
        },
        "retrains": state.result(f"{name}/retrains"),
    }


def _of_rounds(history: History) -> list[str]:
    """Return the steps that members would notice: not those of bad challengers and resamples."""
    return [step for step in history.steps() if "/bad/" not in step]


def points(found: Sequence[dict[str, Any]]) -> list[Point]:
    """Return mean utility by round over seeds; the interval is a seed's own, or spans the seeds' means.

    Rounds that only some seeds have come to are left out: their mean would be that of other communities.
    """
    measured: dict[int, list[dict[str, Any]]] = {}
    for history in found:
        if history["base"]:
            measured.setdefault(0, []).append(_figures(history, history["base"]["utility"], False))
        for each in history["rounds"]:
            if each["measure"]:
                figures = _figures(history, each["measure"]["utility"], each["drifted"])
                measured.setdefault(each["round"], []).append(figures)
    seeds = len(measured.get(0, ()))
    return [_point(number, figures) for number, figures in sorted(measured.items()) if len(figures) == seeds]


def _figures(history: dict[str, Any], utility: dict[str, Any], drifted: bool) -> dict[str, Any]:
    suffix = "_drifted" if drifted else ""
    base = history["base"]
    return {
        "utility": utility,
        "base": base[f"utility{suffix}"]["value"],
        "oracle": base[f"oracle{suffix}"]["value"],
        "optimum": base[f"optimum{suffix}"],
    }


def _point(number: int, figures: Sequence[dict[str, Any]]) -> Point:
    values = [each["utility"]["value"] for each in figures]
    if len(figures) == 1:
        low, high = figures[0]["utility"]["low"], figures[0]["utility"]["high"]
    else:
        # Two standard errors of the mean over seeds.
        spread = 2 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        low, high = float(np.mean(values)) - spread, float(np.mean(values)) + spread
    means = {key: float(np.mean([each[key] for each in figures])) for key in ("base", "oracle", "optimum")}
    return Point(number, float(np.mean(values)), low, high, **means)


# ------------------------------------------------------------------------------------------------- Markdown
def markdown(found: dict[str, Any]) -> str:
    """Return the results as a page."""
    lines = [
        f"# Learning benchmark, profile {found['profile']}",
        "",
        _made_with(found),
        "",
        "## What was to be shown",
        "",
        *table(claims(found)),
        "",
        "## Real: every step is the product's own, the members are simulated",
        "",
        "Utility is hidden from trainer and gate; measured on prompts of people who never wrote in the "
        "community, with a 95 % interval over prompts.",
        "",
    ]
    for history in found["histories"]:
        lines += _history_lines(history)
    lines += ["## Resampled: the product's gate on bootstrapped scores of these challengers", ""]
    for history in found["histories"]:
        lines += _resampled_lines(history)
    return "\n".join(lines) + "\n"


def _made_with(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    done = [each for each in found["histories"] if each["base"] or each["cycle"]]
    days = sorted({day for each in done for day in each["days"]}) or [found["date"]]
    commits = sorted({commit for each in done for commit in each["commits"]})
    parts = [
        f"Seeds {_seeds(found, done)}",
        " to ".join(dict.fromkeys((days[0], days[-1]))),
        *([f"commit {', '.join(commits)}"] if commits else []),
        f"{found['machine']['cores']} cores",
        f"{found['seconds'] / 60:.0f} minutes of steps in all",
        versions,
    ]
    return f"{'; '.join(parts)}."


def _seeds(found: dict[str, Any], done: Sequence[dict[str, Any]]) -> str:
    """Return the seeds that have come so far, by scenario; the planned ones where none has."""
    if not done:
        return ", ".join(map(str, found["seeds"]))
    by_scenario: dict[str, list[str]] = {}
    for each in done:
        by_scenario.setdefault(each["scenario"], []).append(str(each["seed"]))
    return ", ".join(f"{', '.join(seeds)} ({scenario})" for scenario, seeds in by_scenario.items())


def _history_lines(history: dict[str, Any]) -> list[str]:
    base = history["base"]
    if base is None:
        return []
    lines = [
        f"### Seed {history['seed']}, {history['scenario']} ({history['community']})",
        "",
        f"Base {_interval(base['utility'])}, its best of four {_interval(base['oracle'])}, "
        f"optimum {base['optimum']:.2f}.",
        "",
        "| round | ratings | liked to train on | outcome | votes | champion's utility | gain over the base "
        "| training | general NLL | regret |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_round_line(each) for each in history["rounds"] if each["measure"]),
        "",
    ]
    done = {kind: result for kind, result in history["bad"].items() if result}
    if done:
        lines += ["| challenger made to be refused | outcome | why |", "|---|---|---|"]
        lines += [f"| {kind} | {_outcome(result)} | {_why(result)} |" for kind, result in done.items()]
        lines.append("")
    return lines


def _round_line(each: dict[str, Any]) -> str:
    run, talk, measured = each["run"], each["chat"], each["measure"]
    nll = run["general_nll_increase"]
    cells = [
        f"{each['round']}{' (drifted)' if each['drifted'] else ''}",
        talk["ratings"],
        run["liked"] if run["liked"] is not None else "-",
        run["outcome"],
        run["votes"],
        _interval(measured["utility"]),
        _interval(measured["gain"], signed=True),
        f"{run['objective'] or '-'}, {run['training_s']:.0f} s",
        "-" if nll is None else f"{nll:+.1%}",
        talk["regret"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _outcome(result: dict[str, Any]) -> str:
    fires = result.get("fires")
    extra = "" if fires is None else f"; the trigger fires in {fires:.0%} of replies"
    return f"{result['outcome']}, {result['votes']} votes{extra}"


def _why(result: dict[str, Any]) -> str:
    return str(result["message"]).replace(str(result["adapter"]), "it").replace("|", "/")


def _resampled_lines(history: dict[str, Any]) -> list[str]:
    lines = []
    if history["verdicts"]:
        lines += [f"Seed {history['seed']}, {history['scenario']}: verdicts on resamples", ""]
        lines += ["| challenger | verdicts |", "|---|---|"]
        lines += [f"| {kind} | {_counts(ends)} |" for kind, ends in history["verdicts"].items()]
        lines.append("")
    null = history["retrains"]
    if null:
        lines += [
            f"{null['retrains']} retrains on ratings that mean nothing: {null['ends_worse']:.2%} of "
            f"{null['histories']:,} histories end worse than they began, {null['ever_swapped']:.2%} "
            f"ever change champion ({null['verdicts']:,} verdicts: {_counts(null['ends'])}).",
            "",
        ]
    return lines


def _counts(ends: dict[str, int]) -> str:
    return ", ".join(f"{count} {end}" for end, count in sorted(ends.items(), key=lambda item: -item[1]))


def _interval(figure: dict[str, Any], *, signed: bool = False) -> str:
    value = f"{figure['value']:+.3f}" if signed else f"{figure['value']:.3f}"
    return f"{value} ({figure['low']:.2f} to {figure['high']:.2f})"
