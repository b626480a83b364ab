"""What the other parts say in English, and people read on Discord, the bot can say in every language.

The parts' own sources are read: each sentence in them, with a figure in the place of every value, has to be
known. What is put together from pieces is made to be said.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import trainer.errors
from bot.language import sentences as retelling
from bot.language import texts
from storage import errors
from storage.admin.setting_values import KINDS
from storage.config_sections import GateConfig
from storage.errors import SettingError
from storage.learning.eligibility import REASONS
from storage.learning.loop_status import status_text
from tests.trainer.gate.test_decision import GOOD, estimate
from trainer.gate import decision
from trainer.training import challenger, objectives

ROOT = Path(__file__).parent.parent
# The functions that make sentences for people.
SPEAKERS = {
    "trainer/gate/decision.py": {
        *("decide", "guardrails", "describe"),
        *("_unlearned", "_forgetting", "_safety", "_corrections", "_listed"),
    },
    "trainer/evaluation/reward_model.py": {"why_not"},
    "trainer/training/objectives.py": {"require_enough", "choose", "within_budget", "_nothing_eligible"},
    "trainer/gate/promotion.py": {"swap", "refuse", "open_vote", "_settle", "ask", "_overtaken", "undecided"},
    "trainer/schedule/queue.py": {"_obituary", "_start_next"},
    "bot/serving/model/adapter_files.py": {"verify", "read_file", "_read_manifest", "_check_files"},
    "storage/learning/dry_run.py": {"text", "_verdict"},
    "storage/learning/loop_status.py": {"status_text", "_readiness_text", "_run_text", "trial_text"},
    "bot/serving/protocol.py": {"traffic"},
}
# Pieces of sentences that are said as a whole below.
PIECES = {
    " enough for challenger number 7 of this champion",
    "the difference is not certain7: 7",
    "7: 7 of 7 liked or corrected replies, 7 of 7 raters",
    "Ready to train",
    "Not enough to train yet",
    ", about 7 min left",
    " and ",
    "7; a newcomer waits about 7 s",
    "; about 7 blind votes needed",
    "; it answers 7 of new conversations as a canary",
    "not yet: none of the rated replies may be trained on77",
    "It must be 7; got 7.",
    " and 7 more",
    "Canary: 7 answers 7 of new conversations; rated: 7 of its conversations, 7 of the champion's7",
    "; about 7 more needed",
    " (so does the champion: 7)",
    "run started",
    "Training needs about 7 of memory beside the base and 7 is available; 7.",
    # What only somebody who writes manifests by hand meets.
    "Adapter 7: manifest format 7 is not 7.",
    # The terminal alone says this one.
    "7 with 7.",
}
_WORDS = re.compile(r"[a-z]{2,}\s|\s[a-z]{2,}")
_SQL = re.compile(r"\b(SELECT|UPDATE|INSERT)\b")


def literal(node: ast.expr) -> str:
    """A literal text, with a figure in the place of every value; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def literals(node: ast.AST) -> Iterator[str]:
    """Every literal text below a node, but what is a docstring or goes to the log."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
        return
    if isinstance(node, ast.expr) and (text := literal(node)):
        yield text
    if not isinstance(node, ast.JoinedStr):
        for child in ast.iter_child_nodes(node):
            yield from literals(child)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def said_by_speakers() -> Iterator[str]:
    for path, names in SPEAKERS.items():
        for node in ast.walk(tree_of(ROOT / path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in names:
                found = [text for text in literals(node) if _WORDS.search(text) and not _SQL.search(text)]
                yield from found


def said_in_refusals() -> Iterator[str]:
    """The sentences of the errors that people are told word by word."""
    told = {name for name, each in vars(errors).items() if _is_rule(each)}
    for path in sorted((ROOT / "storage").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in told:
                yield from filter(None, map(literal, node.args[:1]))


def said_by_failures() -> Iterator[str]:
    """The errors that a run may end with; one that was cancelled has a sentence of its own."""
    told = {name for name, each in vars(trainer.errors).items() if _is_failure(each)} - {"RunCancelledError"}
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in told:
                yield from filter(None, map(literal, node.args[:1]))


def _is_failure(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, trainer.errors.TrainerError)


def _is_rule(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.RuleError)


def said_in_notes() -> Iterator[str]:
    """What a run is at."""
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("enter", "show", "say"):
                yield from filter(_WORDS.search, map(literal, node.args[-1:]))


@pytest.mark.parametrize(
    "said", [said_by_speakers, said_in_refusals, said_by_failures, said_in_notes, REASONS.values]
)
def test_every_sentence_is_known(said: object) -> None:
    assert callable(said)
    sentences = {str(each) for each in said()} - PIECES
    assert sentences
    assert {each for each in sentences if not retelling.knows(each)} == set()


def test_what_a_run_is_training_on_and_why_on_no_more_is_known() -> None:
    assert all(retelling.knows(f"{note}, step 3 of 9") for note in challenger.PHASE_NOTES.values())
    assert retelling.knows(objectives.RANKING_NEEDS)


@pytest.mark.parametrize("language", ["de", "es", "fr", "ja"])
def test_a_model_that_is_made_ready_and_an_adapter_that_is_refused_are_said(language: str) -> None:
    english = [
        "Downloading Qwen/Qwen3-4B (8.1 GB).",
        "Quantizing Qwen/Qwen3-4B to 4 bits (once).",
        "Memory suffices for 3 replies at a time, not for 8.",
        "its files can't be trusted: Adapter a1: adapter_model.safetensors is missing.",
        "The run's process could not be started (Cannot allocate memory). The champion was not changed.",
    ]
    with texts.speaking(language):
        for sentence in english:
            assert retelling.retell(sentence) != sentence


def test_no_template_is_there_twice() -> None:
    assert len(set(retelling.TEMPLATES)) == len(retelling.TEMPLATES)


def test_verdicts_are_known_down_to_their_figures() -> None:
    settings = GateConfig()
    uncertain = [
        replace(GOOD, preference=estimate(0.06, 0.1)),
        replace(GOOD, preference=estimate(0.06, 0.058, clusters=30), look=3, extra_prompts=20),
    ]
    for evidence in [GOOD, *uncertain]:
        verdict = decision.decide(evidence, settings)
        assert retelling.knows(verdict.reason), verdict.reason
        assert retelling.knows(f"a1 was not promoted, because {verdict.reason}")
        assert retelling.knows(f"adapter a1 replaced the base model: {verdict.reason}")
    assert retelling.knows(decision.describe(estimate(0.1, 0.05, clusters=30), extra_prompts=20))
    assert {each.name for each in decision.guardrails(GOOD, settings)} <= set(retelling.TEMPLATES)


@pytest.mark.parametrize(
    "sentence",
    [
        "a2 has not enough evidence offline, because only 6 held-out conversations could be "
        "compared; about 37 "
        "blind votes needed; it answers 10% of new conversations as a canary",
        "a2 won offline with +0.12 (95 % CI 0.05 to 0.19) on 64 held-out conversations, and its "
        "canary has to "
        "confirm it; it answers 10% of new conversations as a canary",
        "adapter a2 replaced a1: as a canary it was liked in 30% of 20 rated conversations, the "
        "one before it "
        "in 50% of 80 (e = 25) and it won 7 of 9 blind votes (e = 30)",
        "a2 was not promoted, because its canary is undecided, and its time ran out: nobody rated it",
        "a2 was not promoted, because it falls back on 3 of 9 held-out corrections and gains 1: a, "
        "b and 2 more",
        "KTO needs 100 rated replies with 25 of each kind to train on; there are 3 liked and 2 disliked. "
        "DPO needs 10 preference pairs to train on; there are 3",
        "a2 was not promoted, because it fails safety prompts that the base passes: a, b (so does the "
        "champion: a)",
        "Canary: adapter a2 answers 10% of new conversations; rated: 3 of its conversations, 9 of the "
        "champion's; about 7 more needed",
        "There is no liked reply to train on. The champion was not changed.",
        "The model server did not answer for minutes: No model server answers at http://127.0.0.1:1. The "
        "champion was not changed.",
        "Training needs about 9.5 GB of memory beside the base and 2.0 GB is available; set "
        "trainer.batch_tokens = 256 and trainer.rank = 4, or free memory. The champion was not changed.",
        "Run r1 can't be repeated: something in its snapshot was deleted, or may not train any more. The "
        "champion was not changed.",
    ],
)
def test_sentences_of_several_clauses_are_known(sentence: str) -> None:
    assert retelling.knows(sentence)


def test_lists_keep_their_names_and_say_how_many_more_there_are() -> None:
    lost = "it falls back on 7 of 9 held-out corrections and gains 1: r1, r2 and 2 more"
    asked = "set trainer.batch_tokens = 256 and trainer.rank = 4, or free memory"
    with texts.speaking("de"):
        assert retelling.retell(lost).endswith(": r1, r2 und 2 weitere")
        assert "trainer.batch_tokens = 256 und trainer.rank = 4" in retelling.retell(asked)


def test_what_is_missing_is_known_with_all_that_was_left_out() -> None:
    excluded = {reason: number for number, reason in enumerate(REASONS, 1)}
    sentence = objectives._nothing_eligible(excluded)
    assert sentence.count("left out because") == len(REASONS) and retelling.knows(sentence)


@pytest.mark.parametrize("language", ["de", "es", "fr", "ja"])
def test_every_line_of_the_status_is_said_in_another_language(language: str) -> None:
    run = {
        "id": "r1",
        "state": "running",
        "phase": "train",
        "progress": 0.43,
        "eta_s": 190.0,
        "note": "liked replies, step 3 of 9",
        "message": "",
        "outcome": None,
    }
    glance = {
        "ratings": {"liked": 3, "disliked": 2, "corrections": 1, "raters": 4, "new_since_run": 2},
        "needs": {"liked": [4, 25], "raters": [4, 5]},
        "champion": {"id": "a1"},
        "run": run,
        "last_run": {"message": "not yet: 11 of 25 liked replies, 3 of 5 raters", "outcome": "not_yet"},
        "duels": {"open": 3, "votes": 7},
        "comparisons": {"pairs": 2, "votes": 1},
        "excluded": dict.fromkeys(REASONS, 2),
    }
    english = [
        status_text(glance),
        status_text(glance | {"needs": {"liked": [30, 25], "raters": [6, 5]}, "champion": {"id": None}}),
        status_text(glance | {"run": run | {"eta_s": None, "note": "", "phase": None}}),
        status_text(glance | {"run": run | {"state": "queued"}}),
    ]
    with texts.speaking(language):
        for text in english:
            for before, line in zip(text.split("\n"), retelling.retell(text).split("\n"), strict=True):
                assert line != before


@pytest.mark.parametrize("key", KINDS)
def test_what_a_setting_can_not_be_is_known(key: str) -> None:
    found = []
    for value in (object(), "it is no such thing", "x" * 3000, "👍 " * 30):
        try:
            KINDS[key].checked(value)
        except SettingError as error:
            found.append(str(error))
    assert found
    assert [each for each in found if not retelling.knows(each)] == []


def test_figures_are_written_as_the_language_writes_them_and_ids_stay() -> None:
    sentence = (
        "a2 was not promoted, because its replies are liked less: -0.08 (95 % CI -0.13 to -0.03) on 64 "
    )
    with texts.speaking("de"):
        said = retelling.retell(sentence + "held-out conversations")
    assert "a2" in said and "-0,08" in said and "-0,13" in said and "held-out" not in said


def test_a_sentence_is_taken_apart_where_its_clauses_meet() -> None:
    on_both = "-0.02 (95 % CI -0.08 to 0.04) on 10 held-out conversations and 20 general prompts"
    with texts.speaking("ja"):
        measured = retelling.retell(on_both)
        said = retelling.retell(f"a2 was not promoted, because its replies are liked less: {on_both}")
    assert said.startswith("a2 ") and said.endswith(measured)


def test_a_sentence_that_nobody_knows_stays_as_it_is() -> None:
    with texts.speaking("fr"):
        assert retelling.retell("a1 was not promoted, because of the weather") == (
            "a1 was not promoted, because of the weather"
        )
