"""Sample replies of a run are shown if its folder still has them, and never guessed."""

import json
from pathlib import Path

import pytest

from storage.learning import run_summary
from storage.learning.run_summary import Sample


def line(group: str | None, prompt: str, challenger: str, champion: str) -> str:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": prompt}]
    pair = {"group": group, "messages": messages}
    return json.dumps(pair | {"challenger": {"text": challenger}, "champion": {"text": champion}})


def kept(runs: Path, *lines: str) -> Path:
    folder = runs / "r1"
    folder.mkdir()
    (folder / run_summary.FILE).write_text("".join(f"{each}\n" for each in lines))
    return runs


def test_only_replies_that_differ_are_samples(tmp_path: Path) -> None:
    kept(tmp_path, line("g", "p6", "same", "same "), line("g", "p8", "", "b"), line("g", "p9", "a", "b"))
    assert run_summary.samples(tmp_path, "r1", 5) == [Sample("p9", "a", "b", held_out=True)]


def test_prompts_that_votes_are_held_on_are_no_samples(tmp_path: Path) -> None:
    kept(tmp_path, *(line("g", f"p{number}", "a", "b") for number in range(30)))
    shown = {sample.prompt for sample in run_summary.samples(tmp_path, "r1", 30)}
    assert shown == {f"p{number}" for number in range(30) if run_summary.may_be_shown(f"p{number}")}
    assert 5 <= len(shown) <= 15


def test_members_prompts_are_left_out_of_what_everybody_sees(tmp_path: Path) -> None:
    asked = {"p6": "g", "p8": None, "p9": None, "p11": None}
    kept(tmp_path, *(line(group, prompt, "a", "b") for prompt, group in asked.items()))
    shown = run_summary.samples(tmp_path, "r1", 2, general_only=True)
    assert len(shown) == 2 and not any(sample.held_out for sample in shown)


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", '{"challenger": {"text": null}, "champion": {}}'])
def test_a_scrubbed_or_damaged_file_has_no_samples(tmp_path: Path, damaged: str) -> None:
    assert run_summary.samples(tmp_path, "r1", 5) == []
    assert run_summary.samples(kept(tmp_path, damaged), "r1", 5) == []
