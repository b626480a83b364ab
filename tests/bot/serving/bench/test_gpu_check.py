"""The check of a GPU goes through every line without one, and notices an engine that is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.bench.gpu_check import correctness
from tests.bench.gpu_check.__main__ import guarded, main
from tests.bench.gpu_check.random_base import build, lora_tensors, wide_tokenizer
from tests.bench.gpu_check.results import PAGE, Check, Row, publish, read_check
from tests.bench.gpu_check.setting import tiny
from tests.bench.serving.errors import BenchError
from tests.bench.shapes import TINY

# Installed here, and missing on the machine that the check is made for.
ABSENT = ("bitsandbytes", "trl", "aiohttp", "discord", "apscheduler", "typer", "gguf", "prometheus_client")
BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
runpy.run_module("tests.bench.gpu_check", run_name="__main__", alter_sys=True)
"""


def test_every_part_runs_to_its_end_on_a_bare_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BARE, "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    check = read_check(tmp_path / "gpu-check.json")
    assert [row.part for row in check.rows] == [
        "correctness",
        *["serving"] * 2,
        *["training"] * 3,
        "beside training",
    ]
    assert [row.reason for row in check.rows if not row.figure] == ["trl is not installed"]
    assert check.rows[0].passed is True
    assert all(row.numbers["p99_ms"] > 0 for row in check.rows if row.part == "serving")
    table = (tmp_path / "gpu-check.md").read_text()
    assert "| training | tiny | TRL | not measured: trl is not installed |" in table


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_an_engine_with_the_wrong_adapters_is_noticed(in_4_bits: bool) -> None:
    setting = tiny("cpu", in_4_bits)
    (row,) = correctness.check(setting, TINY)
    assert row.passed
    assert row.numbers["same"] > 0.9
    base = build(TINY, "cpu", in_4_bits=in_4_bits)
    adapters = [None, lora_tensors(base.model, 1), lora_tensors(base.model, 2)]
    prompts = correctness._prompts(TINY)
    with torch.no_grad():
        right = correctness._plain(base.model, prompts, adapters, (0, 1, 2, 1))
        wrong = correctness._engine(base, prompts, adapters, (0, 2, 1, 1))
    assert correctness._distance(wrong, right) > 3 * row.numbers["off"]


def test_a_part_that_cannot_run_says_why_and_the_others_go_on() -> None:
    def rows() -> Iterator[Row]:
        yield Row("serving", "4B", "1 stream", "5 tokens/s")
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    found = list(guarded("serving", TINY, rows()))
    assert [row.figure for row in found] == ["5 tokens/s", ""]
    assert found[1].reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_is_told_what_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "serving"]) == 1
    assert "--device cpu --tiny" in capsys.readouterr().err


def test_a_wrong_engine_fails_the_check_and_shows_in_its_table(tmp_path: Path) -> None:
    file = Check({"device": "H200"}, [Row("correctness", "4B", "logits", "9% off", passed=False)]).write(
        tmp_path
    )
    page = tmp_path / "README.md"
    shutil.copy(PAGE, page)
    publish(file, page)
    assert "| correctness | 4B | logits | 9% off: **WRONG** |" in page.read_text()
    publish(file, page)
    assert page.read_text().count("**WRONG**") == 1
    page.write_text("no marks")
    with pytest.raises(BenchError, match="has no place"):
        publish(file, page)
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(BenchError, match="holds no results"):
        publish(tmp_path / "other.json", page)


def test_the_tokenizer_has_as_many_tokens_as_the_base() -> None:
    tokenizer = wide_tokenizer(2000)
    assert len(tokenizer) == 2000
    assert tokenizer.decode(tokenizer("Hello there!")["input_ids"]) == "Hello there!"
