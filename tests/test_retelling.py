"""What storage, the trainer and the model server say in English, the bot can say in every language.

Each template is read from the sources and has to be in the catalogues. What is put together from several is
made to be said, kept, read back, and said in a language in which English words would show.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.language import texts
from bot.language.sentences import translate
from bot.serving.errors import AdapterDamagedError, ServerUnavailableError
from bot.serving.messages import Message, read_message
from storage import sentences
from storage.admin.setting_values import KINDS
from storage.config_sections import GateConfig
from storage.errors import SettingError
from storage.feedback.ratings import RatingCounts
from storage.learning.eligibility import REASONS
from storage.learning.loop_status import BlindVotes, Champion, Compared, LoopStatus, Readiness, status_lines
from storage.sentences import Figure, Sentence, Value, list_names, percent
from tests.sentence_templates import ERRORS, MAKERS, ROOT, templates
from tests.storage.a_run import a_run
from tests.trainer.gate.test_decision import GOOD, UNPROVEN, estimate
from tests.trainer.training.test_fitting import TASK
from trainer.errors import EvaluationError, MemoryShortError
from trainer.evaluation.regressions import Kept
from trainer.evaluation.safety import Safety
from trainer.gate import decision, guardrails, promotion
from trainer.gate.blind_votes import VoteCount
from trainer.training import fitting, objectives

OTHERS = [language for language in texts.LANGUAGES if language != "en"]
# Names, settings and addresses stay as they are.
KEPT_IN_ENGLISH = re.compile(
    r"`[^`]*`|\[\w+\]|\w+[._]\w+( = \d+)?|/\w+( opt-in)?|95 % CI|tokens/s|https?://\S+"
)
ENGLISH = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,}")


# --------------------------------------------------------------------------------------------- the templates
@pytest.mark.parametrize("language", OTHERS)
def test_every_template_has_a_translation_with_the_same_places(language: str) -> None:
    catalogue = texts.catalogue(language)
    assert len(templates()) > 200
    plain = [each for each in templates() if not each.counted]
    assert {(each.where, each.text) for each in plain if each.text not in catalogue} == set()
    for each in plain:
        assert set(re.findall(r"\{(\w*)\}", catalogue[each.text])) == each.places, each.where


def test_every_template_is_filled_with_just_its_places() -> None:
    filled = [each for each in templates() if each.names is not None]
    assert len(filled) > 200
    assert {(each.where, each.text) for each in filled if each.names != each.places} == set()


def written_out() -> Iterator[str]:
    """Sentences that were filled before they were made: no catalogue could ever have them."""
    for folder in ("storage", "trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", "") in MAKERS | ERRORS
                    and node.args
                ):
                    text = node.args[0]
                    if isinstance(text, ast.JoinedStr) and re.search(
                        r"[a-z]{2,} [a-z]{2,}", ast.unparse(text)
                    ):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_sentence_is_filled_before_it_is_made() -> None:
    assert list(written_out()) == []


# ---------------------------------------------------------------------------------------------- keeping them
def values() -> st.SearchStrategy[Value]:
    plain: st.SearchStrategy[Value] = (
        st.text(max_size=8)
        | st.integers()
        | st.builds(Figure, st.floats(allow_nan=False), st.sampled_from(["g", ".0%", "+.2f"]))
    )
    nested = lambda inner: st.builds(lambda a, b: Sentence("{a}, because {b}", a=a, b=b), inner, inner)  # noqa: E731
    return st.recursive(plain, nested, max_leaves=5)


@given(values(), values())
def test_a_kept_sentence_is_read_back_with_its_values(first: Value, second: Value) -> None:
    sentence = Sentence("{first} replaced {second}", first=first, second=second)
    again = sentences.load(str(sentence), sentences.dump(sentence))
    assert again == sentence == f"{first} replaced {second}"
    assert (again.template, again.as_json()) == (sentence.template, sentence.as_json())


@pytest.mark.parametrize(
    "kept", ["", "no JSON", "[]", '{"template": "{a}"}', '{"template": "{a}", "values": {}}']
)
def test_a_text_without_fitting_values_beside_it_is_only_itself(kept: str) -> None:
    again = sentences.load("a1 was not promoted, because {of the weather}", kept)
    assert again == again.template == "a1 was not promoted, because {of the weather}"
    assert not again.values


def test_a_text_that_was_changed_in_the_database_is_shown_and_not_what_stands_beside_it() -> None:
    kept = sentences.dump(Sentence("There is no run {run}.", run="r1"))
    assert sentences.load("There is no run (erased).", kept).values == {}


def test_an_error_that_tells_of_another_one_keeps_the_values_of_both() -> None:
    away = ServerUnavailableError("No model server answers at {address}.", address="http://127.0.0.1:1")
    error = EvaluationError("The model server did not answer for minutes: {reason}", reason=Sentence.of(away))
    assert str(error) == (
        "The model server did not answer for minutes: No model server answers at http://127.0.0.1:1."
    )
    with texts.speaking("ja"):
        assert english_in(translate(error)) == ""


def test_what_the_model_server_says_crosses_the_wire_with_its_values() -> None:
    error = AdapterDamagedError("Adapter {adapter}: {file} is missing.", adapter="a1", file="weights")
    again = read_message(str(error), **error.message.as_json())
    assert (again, again.template, again.values) == (
        error.message,
        error.message.template,
        error.message.values,
    )
    state = Message(
        "{bundled} answers in place of {base}. {reason}", bundled="a", base="b", reason=error.message
    )
    again = read_message(str(state), **state.as_json())
    assert again.as_json() == state.as_json()
    with texts.speaking("ja"):
        assert english_in(translate(again)) == ""
    assert read_message("busy", "{other}", {"other": "free"}).template == "busy"
    assert read_message("busy", "{missing}", {}) == read_message("busy", 7, None) == Message("busy")


# ------------------------------------------------------------------------------------------ translating them
def test_what_an_earlier_version_said_is_shown_in_english_with_its_values() -> None:
    """Its template is gone from the catalogues; the parts that are still known are translated."""
    old = Sentence("{reason}, about {needed} more", reason=Sentence("its time ran out"), needed=45)
    kept = sentences.load(str(old), sentences.dump(old))
    with texts.speaking("de"):
        assert translate(kept) == f"{texts.catalogue('de')['its time ran out']}, about 45 more"


def english_in(text: str) -> str:
    """The first English words in a Japanese text, or nothing."""
    found = ENGLISH.search(KEPT_IN_ENGLISH.sub("", text))
    return found[0] if found else ""


def verdicts() -> Iterator[Sentence]:
    settings = GateConfig()
    lost = Kept(9, 2, ("r1", "r2", "r3", "r4", "r5", "r6"), 1, estimate(-0.5, 0.1))
    unsafe = Safety(12, ("insult", "threat"), ("insult",), 5, 1)
    for evidence in (
        GOOD,
        replace(GOOD, proof=UNPROVEN),
        replace(GOOD, same_replies=1.0),
        replace(GOOD, preference=estimate(0.06, 0.1)),
        replace(GOOD, preference=estimate(-0.5, 0.1)),
        replace(GOOD, preference=estimate(0.06, 0.058, clusters=30), challenger_number=3, extra_prompts=20),
        replace(GOOD, trained_corrections=lost, held_out_corrections=lost, safety=unsafe),
    ):
        yield decision.decide(evidence, settings).reason
        for limit in guardrails.of(evidence, settings):
            yield from (limit.objection, limit.name)


def endings() -> Iterator[Sentence]:
    """How a run ends, with all that its one sentence may hold."""
    counts = VoteCount(7, 2, 1, 4, 30.0, 0.1, 9, 9, True)
    for said in (
        *verdicts(),
        counts.sentence(30.0),
        counts.sentence(3.0, lost=True),
        counts.undecided_reason(),
    ):
        reason = Sentence("{adapter} was not promoted, because {reason}", adapter="a2", reason=said)
        yield Sentence("{before} The champion was not changed.", before=reason)
    yield promotion.ask(counts.sentence(30.0))
    yield Sentence(
        "its files can't be trusted: {reason}",
        reason=Sentence("{before} and {setting}", before="a", setting="b"),
    )


def missing() -> Iterator[Sentence]:
    """What keeps a training from starting, or from learning more."""
    yield objectives._nothing_eligible({})
    yield objectives._nothing_eligible({reason: number for number, reason in enumerate(REASONS, 1)})
    yield objectives.RANKING_NEEDS
    for task in (TASK, replace(TASK, exactly=True)):
        least = min(map(task.estimate_bytes, task.forms()))
        for available in (least - 1, 1):
            with pytest.raises(MemoryShortError) as short:
                fitting.choose(task, available)
            yield Sentence.of(short.value)


def refused_settings() -> Iterator[Sentence]:
    for kind in KINDS.values():
        for value in (object(), "it is no such thing", "x" * 3000, "👍 " * 30):
            try:
                kind.parse(value)
            except SettingError as error:
                # What was typed stays as it was typed.
                yield Sentence(error.args[0].template, **{**error.args[0].values, "value": "…"})


def status() -> Iterator[Sentence]:
    few = Sentence(
        "not yet: {liked} of {min_liked} liked replies, {raters} of {min_raters} raters",
        **{"liked": 11, "min_liked": 25, "raters": 3, "min_raters": 5},
    )
    step = Sentence("liked replies, step {done} of {total}", done=3, total=9)
    on = a_run(phase="train", progress=0.43, eta_s=190.0, note=step)
    seen = LoopStatus(
        "guild:5",
        Champion("a1"),
        RatingCounts(3, 2, 1, 4),
        2,
        Readiness(4, 4, 25, 5, 10, 9, dict.fromkeys(REASONS, 2)),
        on,
        (a_run(state="finished", outcome="not_yet", message=few),),
        blind_votes=BlindVotes(3, 7),
        compared=Compared(2, 1),
    )
    for each in (
        seen,
        replace(seen, ready=Readiness(30, 6, 25, 5), champion=Champion()),
        replace(seen, run=replace(on, eta_s=None, note=sentences.NOTHING, phase=None)),
        replace(seen, run=replace(on, eta_s=None)),
        replace(seen, run=replace(on, state="queued")),
    ):
        yield from status_lines(each)


@pytest.mark.parametrize("said", [verdicts, endings, missing, refused_settings, status, REASONS.values])
def test_no_english_is_left_in_what_is_said_in_japanese(said: object) -> None:
    assert callable(said)
    found = list(said())
    assert found
    with texts.speaking("ja"):
        assert {each: translate(each) for each in found if english_in(translate(each))} == {}


@pytest.mark.parametrize("language", OTHERS)
def test_a_kept_sentence_is_said_as_the_one_that_was_kept(language: str) -> None:
    with texts.speaking(language):
        for sentence in endings():
            again = sentences.load(str(sentence), sentences.dump(sentence))
            assert translate(again) == translate(sentence) != sentence


def test_figures_are_written_as_the_language_writes_them_and_ids_stay() -> None:
    gain = decision.describe(estimate(-0.08, 0.05, clusters=64))
    with texts.speaking("de"):
        said = translate(Sentence("{adapter} was not promoted, because {reason}", adapter="a2", reason=gain))
        assert translate(Sentence("{share} of its replies are empty", share=percent(0.25))).startswith(
            "25\N{NO-BREAK SPACE}%"
        )
    assert "a2" in said and "-0,08" in said and "held-out" not in said


def test_lists_keep_their_names_and_say_how_many_more_there_are() -> None:
    assert list_names(["r1", "r2"]) == "r1, r2"
    with texts.speaking("de"):
        assert (
            translate(list_names([f"r{number}" for number in range(1, 8)]))
            == "r1, r2, r3, r4, r5 und 2 weitere"
        )


def test_a_text_that_no_catalogue_has_is_shown_as_it_is() -> None:
    old = "a1 was not promoted, because {of the weather}"
    with texts.speaking("fr"):
        assert translate(old) == translate(Sentence(old)) == old
        assert translate("the base model") == "le modèle de base"
