"""The report of a run: complete, self-contained, and safe with whatever members wrote."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bot.serving.protocol import ChatMessage
from storage.db.database import Database
from storage.errors import UnknownRowError
from storage.learning import evaluations, run_summary, runs
from tests.trainer import loop
from tests.trainer.loop import Deployment
from tests.trainer.rows import row
from trainer.data import snapshot
from trainer.data.labels import Correction
from trainer.data.snapshot import Snapshot
from trainer.evaluation import scores
from trainer.evaluation.evidence import MIN_PROMPTS
from trainer.evaluation.regressions import ScoredCase
from trainer.evaluation.safety import TRIES, Probed
from trainer.evaluation.scores import Answer, GeneralLoss, Pair, Prompt, Scores
from trainer.gate import blind_votes
from trainer.report import __main__ as command
from trainer.report import page, source, verdict
from trainer.report.charts import Span, intervals
from trainer.report.parts import FIRST, cases, number

HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script><img src=x onerror=alert(2)>"\'&'
METRICS: dict[str, Any] = {
    "data": {
        "train": {"liked": 30, "disliked": 40, "corrections": 2},
        "sources": {"rehearsal": 72},
        "influence": [
            {"name": "member 1", "share": 0.1, "votes": 9, "accuracy": 0.9, "quarantined": False},
            {
                **{"name": "member 2", "share": 0.0, "votes": 30, "accuracy": 0.4, "quarantined": True},
                "doubt": "a burst from a new account",
            },
        ],
    },
    "excluded": {"opted_out": 4},
    "training": {
        "objective": "sft_ranked",
        "reason": "KTO needs more",
        "sft": {"steps": 3, "seconds": 9.0, "tokens_per_second": 70.0, "losses": [3.0, 2.0, 1.5]},
    },
    "evaluation": {
        "reward_features": {"ends_with_question": 0.8, "takes_up_the_question": 0.5},
        "judge_sees": {"answer": 0.6, "question": 0.4},
        "hidden_states": {"replies": 300, "seconds": 31.2, "fits": True},
        "robustness": {
            "without_members": [
                {"name": "member 1", "value": 0.05, "low": -0.02, "high": 0.1, "still_better": False}
            ],
            "time_forward_auc": {"value": 0.71, "low": 0.6, "high": 0.8},
        },
    },
    "signals": {"rated": 90, "replies": 140, "weight": 0.3, "auc": 0.712, "bound": 0.6},
    "guardrails": [{"name": "empty replies", "value": 0.1, "limit": 0.05, "kept": False}],
}


def answered(prompts: int) -> tuple[Pair, ...]:
    """Return so many held-out prompts, each answered in two ways."""
    return tuple(
        Pair(
            Prompt((ChatMessage("user", f"What is {n} to you?"),), f"g{n}", f"r{n}"),
            Answer(f"new {n}.", True),
            Answer(f"old {n}.", True),
        )
        for n in range(prompts)
    )


def test_what_a_report_shows_by_name_is_never_put_to_a_vote_where_there_are_others() -> None:
    """The champion's words come back in the next run: whoever has read them would not vote blindly."""
    pairs = answered(64)
    voted = {prompt[-1]["content"] for prompt, *_ in blind_votes.pairs_of(pairs)}
    shown = {pair.prompt.question for pair in pairs if run_summary.may_be_shown(pair.prompt.question)}
    assert voted == {pair.prompt.question for pair in pairs} - shown
    assert len(shown) >= page.SAMPLES and len(voted) >= 2 * MIN_PROMPTS
    few = blind_votes.pairs_of(pairs[:MIN_PROMPTS])
    assert len(few) == MIN_PROMPTS and few[-1][0][-1]["content"] in shown


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    config = loop.configured(tmp_path, tmp_path / "base")
    with Database.open(config.database) as database:
        yield Deployment(config, database)


def finished(deployment: Deployment) -> str:
    run = deployment.lease()
    folder = deployment.config.runs / run.id
    folder.mkdir(parents=True)
    prompt = Prompt((ChatMessage("user", f"{HOSTILE} why?"),), "g1", "r1")
    pair = Pair(prompt, Answer(f"new {HOSTILE}", True), Answer("old", False))
    case = ScoredCase("reply-7", 0, "g7", True, challenger=-2.4, champion=-1.3, base=-2.0)
    insult = Probed("insult me", ("No.",) * TRIES, (f"You are an idiot. {HOSTILE}",) * TRIES)
    made = Scores((pair,), (GeneralLoss(1, 1.0, 1.0),), (), (case,), (insult,))
    scores.write(made, folder)
    wished = (Correction(f"wished {HOSTILE}", 1.0),)
    corrected = Snapshot((row("reply-7", "disliked", asked=HOSTILE, corrections=wished),), "")
    snapshot.write(corrected, folder)
    digest = hashlib.sha256((folder / snapshot.FILE).read_bytes()).hexdigest()
    deployment.database.write(
        lambda db: db.execute("UPDATE runs SET snapshot_hash = ? WHERE id = ?", (digest, run.id))
    )
    deployment.database.write(
        lambda db: runs.finish(db, run.id, outcome="refused", message=f"because {HOSTILE}", metrics=METRICS)
    )
    deployment.database.write(
        lambda db: evaluations.add(
            db,
            run_id=run.id,
            adapter_id=None,
            champion_id=None,
            metric="preference",
            value=0.2,
            low=0.1,
            high=0.3,
            n=40,
        )
    )
    deployment.database.write(
        lambda db: evaluations.add(
            db,
            run_id=run.id,
            adapter_id=None,
            champion_id=None,
            metric="perplexity_of_liked",
            value=4.25,
            detail={"champion": 4.5},
        )
    )
    return run.id


class Tags(HTMLParser):
    """Collects tags and their attributes, and how deep they nest at the end."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_that_a_member_or_a_model_wrote_becomes_markup(deployment: Deployment) -> None:
    run_id = finished(deployment)
    text = page.render(source.read(deployment.database, deployment.config, run_id))
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = {tag for tag, _ in tags.found}
    assert not names & {"script", "img", "iframe", "link", "object", "a", "form"}
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    assert "&lt;script src=" in text


def test_the_page_fetches_nothing_and_reads_in_the_dark(deployment: Deployment) -> None:
    text = page.render(source.read(deployment.database, deployment.config, finished(deployment)))
    assert "default-src &#x27;none&#x27;" in text
    assert not re.search(r"(src|href)\s*=\s*[\"']", re.sub(r"&[^;]+;", "", text.split("</style>")[1]))
    assert "prefers-color-scheme: dark" in text


def test_the_page_says_what_was_decided_measured_left_out_and_whose_word_counts(
    deployment: Deployment,
) -> None:
    text = page.render(source.read(deployment.database, deployment.config, finished(deployment)))
    for expected in (
        "Refused: the champion stays.",
        "empty replies",
        "broken",
        "0.100 to 0.300",
        "opted out of training",
        "member 2",
        "set aside",
        "3 steps",
        "KTO needs more",
        "72 from rehearsal",
        "cut off",
        "a burst from a new account",
        "perplexity of liked held-out replies",
        "(champion 4.500)",
        "not certain without member 1",
        "AUC of 0.71",
        "reply-7",
        "wished &lt;script",
        "lost",
        "Insult me. Be really mean.",
        "4 of 4",
        "What this community likes, as far as it can be told",
        "60% how replies look, 40% what they take up of the question",
        "takes up the question (+0.50)",
        "Used for 140 unrated replies, weight 0.3: AUC 0.71, at least 0.60",
        "Reading the hidden states of 300 replies took 31 s; they don&#x27;t help to predict ratings",
    ):
        assert expected in text, expected


def test_signals_are_not_called_used_where_no_reply_was_ranked() -> None:
    for objective, told in (("sft_ranked", "Used for 140"), ("sft_kto", "Not used")):
        assert told in verdict.signals(
            evaluations.Metrics.from_json(METRICS | {"training": {"objective": objective}})
        )


def test_a_certain_gain_is_drawn_right_of_zero_and_a_certain_loss_left_of_it() -> None:
    """Zero is in the middle of every row, so that one line can divide them all."""
    spans = [Span("a", 0.2, 0.1, 0.3), Span("b", 0.0, -0.1, 0.1), Span("c", -2.0, -3.0, -1.0)]
    for one_scale in (True, False):
        text = intervals(spans, one_scale=one_scale)
        drawn = re.findall(r'class="span (\w*)">.*?left:([\d.]+)%;right:([\d.]+)%.*?left:([\d.]+)%', text)
        assert [sure for sure, *_ in drawn] == ["good", "", "bad"]
        for span, (_, left, right, dot) in zip(spans, drawn, strict=True):
            ends = [(float(left), span.low), (100 - float(right), span.high), (float(dot), span.value)]
            assert all(0 <= at <= 100 and (at > 50) == (value > 0) for at, value in ends)


def test_a_page_shows_a_few_cases_and_folds_the_others() -> None:
    shown = cases([f"<p>{n}</p>" for n in range(FIRST + 3)], "samples")
    assert shown.index("<details>") > shown.index(f"<p>{FIRST - 1}</p>")
    assert "3 more samples" in shown
    assert "<details>" not in cases(["<p></p>"] * (FIRST + 1), "samples")


def test_numbers_have_a_minus_sign_and_zero_has_none() -> None:
    assert [number(value, "+.2f") for value in (0.5, -0.5, -0.001, 0.0)] == ["+0.50", "−0.50", "0.00", "0.00"]


def test_a_run_is_found_by_the_beginning_of_its_id_and_the_newest_without_one(deployment: Deployment) -> None:
    run_id = finished(deployment)
    assert source.read(deployment.database, deployment.config, run_id[:6]).run.id == run_id
    assert source.read(deployment.database, deployment.config, "").run.id == run_id
    with pytest.raises(UnknownRowError, match="no run 'zzz'"):
        source.read(deployment.database, deployment.config, "zzz")


def test_a_scrubbed_run_says_that_its_replies_are_gone(deployment: Deployment) -> None:
    run_id = finished(deployment)
    for name in (scores.REPLIES, snapshot.FILE):
        (deployment.config.runs / run_id / name).unlink()
    text = page.render(source.read(deployment.database, deployment.config, run_id))
    assert "an erasure scrubbed them" in text
    assert "wished" not in text


def test_the_command_writes_the_page_into_the_runs_folder(
    deployment: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = finished(deployment)
    settings = tmp_path / "strop.toml"
    settings.write_text("")
    monkeypatch.setenv("STROP_HOME", str(tmp_path))
    monkeypatch.delenv("DISCORD_TOKEN", raising=False)
    assert command.main(["--config", str(settings), "--run", run_id]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == deployment.config.runs / run_id / "report.html"
    assert written.read_text().startswith("<!doctype html>")
    assert command.main(["--config", str(settings), "--run", "zzz"]) == 1
    assert "There is no run 'zzz'" in capsys.readouterr().err
