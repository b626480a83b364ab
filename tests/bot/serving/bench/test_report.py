import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.serving.errors import BenchError
from tests.bench.serving.picture import draw
from tests.bench.serving.report import (
    BEGIN,
    END,
    PAGE_FILE,
    PICTURE_FILE,
    RESULTS_FILE,
    insert_section,
    missed,
    number,
    page_section,
    publish,
    table,
)
from tests.bench.serving.results import (
    Results,
    Row,
    join,
    missing_row,
    read_results,
    speed_row,
    write_results,
)
from tests.bot.serving.bench.test_timing import timing

ROOT = Path(__file__).resolve().parents[4]


def results(*rows: Row) -> Results:
    return Results(
        date="2026-01-02 03:04 UTC",
        profile="quick",
        seconds=120.0,
        machine={"processor": "A <fast> one", "cores": 2, "flags": ["avx2"], "memory_gb": 8.0, "gpu": ""},
        versions={"strop": "abc1234", "python": "3.11.7", "packages": {"torch": "2.13.0"}},
        setting="Tiny, NF4",
        rows=rows,
    )


def generate_row(**changes: object) -> Row:
    row = speed_row(
        "generate",
        [timing(2, 1.0), timing(2, 2.0), timing(2, 1.0)],
        [timing(2, 2.0), timing(2, 3.0), timing(2, 4.0)],
        peer="generate",
        goal=(1.5, 2.5),
        whole_goal=(0.9, 1.1),
    )
    return replace(row, **changes)


def test_a_speed_row_holds_medians_the_turns_extremes_and_every_number() -> None:
    row = generate_row()
    assert (row.case, row.unit) == ("2 streams", "tokens/CPU-s")
    assert (row.ours, row.theirs, row.ratio, row.low, row.high) == (30.0, 10.0, 2.0, 1.5, 4.0)
    assert [turn["decode_cpu_s"] for turn in row.raw["strop"]] == [1.0, 2.0, 1.0]
    assert (row.note, row.whole) == ("generate", 1.0)  # the whole request took as long on both sides


@pytest.mark.parametrize(
    ("ratio", "at_most", "verdict"),
    [(1.4, False, "no"), (1.5, False, "yes"), (2.5, False, "aim"), (1.4, True, "yes"), (1.6, True, "no")],
)
def test_a_verdict_compares_the_ratio_with_its_bounds(ratio: float, at_most: bool, verdict: str) -> None:
    row = generate_row(ratio=ratio, at_most=at_most, aim=None if at_most else 2.5)
    assert row.verdict() == verdict


def test_the_table_says_why_a_row_was_not_measured() -> None:
    text = table([generate_row(), missing_row("vllm", 16, "not installed: make bench-peers")])
    goals = "≥ 1.5, 2.5; with the prompt ≥ 0.9, 1.1 | yes; with the prompt yes"
    figures = "| 1 | 30 tokens/CPU-s | 10 | **2.00** (1.50 to 4.00) | **1.00** (1.00 to 1.00) |"
    assert f"{figures} {goals} |" in text
    assert "| 16 streams | – | – | not installed: make bench-peers | – | – | – | – |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.00012, "1.2e-04"), (3.14159, "3.14"), (42.0, "42"), (1234.5, "1234")]
)
def test_numbers_keep_the_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_results_survive_their_file(tmp_path: Path) -> None:
    written = results(generate_row(), missing_row("llama.cpp", 1, "not installed"))
    write_results(written, tmp_path / "deep" / "run.json")
    assert read_results(tmp_path / "deep" / "run.json") == written


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [{"colour": 1}]}', '{"rows": [], "date": ""}'])
def test_a_file_that_holds_no_results_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BenchError, match=r"x\.json holds no results"):
        read_results(tmp_path / "x.json")


def test_publishing_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    for file in (PAGE_FILE, RESULTS_FILE, PICTURE_FILE):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / PAGE_FILE).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_results(results(generate_row()), tmp_path / "run.json")
    publish([tmp_path / "run.json"], tmp_path)
    publish([tmp_path / "run.json"], tmp_path)
    page = (tmp_path / PAGE_FILE).read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n")
    assert "old" not in page and page.count("**2.00**") == 1
    assert read_results(tmp_path / RESULTS_FILE) == results(generate_row())
    ET.parse(tmp_path / PICTURE_FILE)


def test_a_page_without_markers_is_left_alone() -> None:
    with pytest.raises(BenchError, match="no place for the table"):
        insert_section("nothing here", "section")


def test_the_picture_is_well_formed_and_names_every_row_beside_its_bar() -> None:
    slow = generate_row(section="llama.cpp", ratio=0.4, case="1 stream")
    text = draw(results(generate_row(), slow, missing_row("vllm", 1, "not <installed>")))
    picture = ET.fromstring(text)
    words = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "2.00 transformers + PEFT" in words
    assert "0.40 llama.cpp" in words
    assert any("not <installed>" in word for word in words)
    even = next(e for e in picture.iter("{http://www.w3.org/2000/svg}line") if e.get("class") == "even")
    faster, slower = picture.iter("{http://www.w3.org/2000/svg}rect")
    x = float(even.get("x1", "nan"))
    assert float(faster.get("x", "nan")) == pytest.approx(x, abs=0.2)
    assert float(slower.get("x", "nan")) + float(slower.get("width", "nan")) == pytest.approx(x, abs=0.2)
    assert "prefers-color-scheme: dark" in text


def test_the_picture_shows_the_fastest_way_to_run_a_server_once() -> None:
    text = draw(results(generate_row(), generate_row(theirs=3.0, ratio=9.0)))
    assert "2.00 transformers" in text and "9.00" not in text


def test_the_page_shows_the_committed_results() -> None:
    committed = read_results(ROOT / RESULTS_FILE)
    page = (ROOT / PAGE_FILE).read_text(encoding="utf-8")
    section = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", page, flags=re.DOTALL)
    assert section is not None
    assert section[0] == page_section(committed)
    assert (ROOT / PICTURE_FILE).read_text(encoding="utf-8") == draw(committed)


def test_a_row_of_several_runs_shows_their_median_lowest_and_highest() -> None:
    ratios = (2.5, 1.0, 2.0)
    runs = [
        results(generate_row(ratio=ratio, whole=ratio / 2), generate_row(note="slower", ratio=ratio * 2))
        for ratio in ratios
    ]
    absent = results(generate_row(ours=None, ratio=None, note="", reason="no memory"))
    unmeasured = results(missing_row("vllm", 1, "not installed"))
    fast, slow, vllm = join([absent, *runs, unmeasured]).rows
    assert (fast.ratio, fast.low, fast.high, fast.runs) == (2.0, 1.0, 2.5, 3)
    assert (fast.whole, fast.whole_low, fast.whole_high) == (1.0, 0.5, 1.25)
    assert [run["ratio"] for run in fast.raw["runs"]] == list(ratios)
    assert (slow.note, slow.ratio) == ("slower", 4.0)
    assert vllm.reason == "not installed"
    text = table([fast])
    assert "| 3 | 30 tokens/CPU-s | 10 | **2.00** (1.00 to 2.50) | **1.00** (0.50 to 1.25) |" in text


def test_rows_without_another_side_are_joined_by_their_own_figure() -> None:
    row = Row(section="start", case="first", unit="s", at_least=25.0, aim=15.0, at_most=True)
    joined = join([results(replace(row, ours=seconds)) for seconds in (14.0, 26.0, 16.0)])
    assert (joined.rows[0].ours, joined.rows[0].low, joined.rows[0].high) == (16.0, 14.0, 26.0)
    assert joined.rows[0].verdict() == "yes"
    assert "| 16 s | – | 14 to 26 | – | ≤ 25, 15 | yes |" in table(joined.rows)


def test_what_is_missed_is_named_also_where_only_the_prompt_misses_it() -> None:
    fine = generate_row()
    late = generate_row(whole=0.8)
    assert late.verdict() == "yes" and late.whole_verdict() == "no"
    assert missed([fine, late]) == [late]


def test_runs_of_one_machine_and_setting_are_joined_and_others_are_not() -> None:
    one, other = results(generate_row(case="1 stream")), results(generate_row(case="4 streams"))
    joined = join([one, other])
    assert [row.case for row in joined.rows] == ["1 stream", "4 streams"]
    assert joined.seconds == one.seconds + other.seconds
    with pytest.raises(BenchError, match="different machines"):
        join([one, replace(other, setting="another model")])
