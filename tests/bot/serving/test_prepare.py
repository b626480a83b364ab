"""A base that is prepared in a process of its own: its folder, what is said meanwhile, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bot.serving.errors import BaseRefusedError
from bot.serving.messages import Message
from bot.serving.model.sources import BaseSource
from bot.serving.prepare import PreparationFailedError, PreparingChild


def source_of(folder: Path) -> BaseSource:
    return BaseSource("folder", folder.name, folder)


def test_a_child_makes_the_base_that_this_process_would_make(
    tiny_source: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    models, said = tmp_path / "models", list[Message]()
    child = PreparingChild()
    child.ask(source_of(tiny_source), device="cpu", models_dir=models)
    folder = child.folder(said.append)
    assert folder == models / tiny_folder.name
    assert (folder / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    templates = ["Checking {model}.", "Quantizing {model} to 4 bits (once)."]
    assert [each.template for each in said] == templates


# Its process loads torch, as the next module's server does.
@pytest.mark.model
def test_a_refusal_comes_back_as_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    child = PreparingChild()
    child.ask(source_of(tmp_path / "empty"), device="cpu", models_dir=tmp_path)
    with pytest.raises(BaseRefusedError, match=r"has no \.safetensors weights"):
        child.folder(lambda message: None)


def test_a_child_that_says_nothing_is_a_failure(tmp_path: Path) -> None:
    child = PreparingChild()
    child.end()
    with pytest.raises(PreparationFailedError, match="ended with code 1"):
        child.folder(lambda message: None)


def test_a_child_ends_with_the_server_that_asked_it(tmp_path: Path) -> None:
    asked = {
        "source": {"kind": "folder", "id": "x", "path": str(tmp_path), "revision": ""},
        "device": "cpu",
        "models_dir": str(tmp_path / "models"),
    }
    command = [sys.executable, "-m", "bot.serving.prepare"]
    # Its input is at its end as soon as it has read the request, long before it could have looked at it.
    done = subprocess.run(command, input=f"{json.dumps(asked)}\n", text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "asked",
    ['{"source": {"kind": "fold', "{}\n", '"folder"\n', '{"source": {"kind": "folder", "path": null}}\n'],
    ids=["half a request", "an empty one", "no object", "a source without its name"],
)
def test_what_is_no_request_is_told_in_one_sentence(asked: str) -> None:
    command = [sys.executable, "-m", "bot.serving.prepare"]
    done = subprocess.run(command, input=asked, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert "bot.serving.prepare: its input is not one whole request in JSON on a line" in said
