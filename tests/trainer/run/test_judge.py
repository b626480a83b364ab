"""An adapter from elsewhere: imported by the command line for a real served base, then judged by a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from bot.cli.app import app
from bot.serving.model.loading import load_base
from bot.serving.model.lora.foreign import base_widths
from storage.admin import audit
from storage.db.database import Database
from storage.learning import adapters, runs
from tests.trainer import loop
from tests.trainer.loop import SCOPE, Deployment
from trainer.run.execution import execute

Foreign = Callable[..., Path]
Import = Callable[..., Any]


@pytest.fixture
def deployment(server: Path, tiny_source: Path) -> Iterator[Deployment]:
    config = loop.configured(server, tiny_source)
    for file in config.data.glob("strop.db*"):
        file.unlink()
    shutil.rmtree(config.adapters, ignore_errors=True)
    with Database.open(config.database) as database:
        database.write(lambda db: loop.community(db, 40))
        yield Deployment(config, database)


@pytest.fixture
def foreign(tmp_path: Path, tiny_source: Path) -> Foreign:
    """Train nothing, but save with PEFT what a trainer would leave."""

    def saved(name: str = "mine", **changes: Any) -> Path:
        model = AutoModelForCausalLM.from_pretrained(tiny_source)
        settings = {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": "all-linear",
            "task_type": "CAUSAL_LM",
        } | changes
        torch.manual_seed(0)
        tuned = get_peft_model(model, LoraConfig(**settings, init_lora_weights=False))
        tuned.peft_config["default"].base_model_name_or_path = tiny_source.name
        tuned.save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


@pytest.fixture
def bring(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    monkeypatch.setenv("STROP_HOME", str(deployment.config.home))
    monkeypatch.chdir(tmp_path)

    def run(folder: Path, *options: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["adapters", "import", str(folder), *options])
        assert result.exit_code == code, f"{result.output} {result.stderr} {result.exception!r}"
        return result

    return run


def lease(deployment: Deployment) -> runs.Run:
    leased = deployment.database.write(lambda db: runs.lease_next(db, "test", 600_000))
    assert leased is not None
    return leased


def stored(deployment: Deployment) -> list[adapters.Adapter]:
    return deployment.database.read(lambda db: adapters.listing(db, SCOPE))


def test_an_adapter_from_elsewhere_is_a_candidate_and_the_gate_judges_it(
    deployment: Deployment, foreign: Foreign, bring: Import
) -> None:
    folder = foreign()
    for name in ("training_args.bin", "tokenizer.json", "optimizer.pt"):
        (folder / name).write_bytes(b"\x80never read")
    (folder / "checkpoint-10").mkdir()
    said = bring(folder).stdout
    assert "LoRA of rank 4 on 14 layers" in said
    assert "Not read: README.md, checkpoint-10, optimizer.pt, tokenizer.json, training_args.bin." in said
    (candidate,) = stored(deployment)
    assert candidate.state == "candidate" and candidate.run_id
    assert {path.name for path in (deployment.config.adapters / candidate.id).iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "card.json", "card.md", "manifest.json",
    }  # fmt: skip
    ended = execute(deployment.database, deployment.config, lease(deployment).id)
    assert ended.outcome in ("votes", "refused", "promoted"), ended.error
    assert ended.adapter_id == candidate.id and candidate.id in ended.message
    assert ended.metrics.training.objective == "imported" and not ended.metrics.training.phases
    assert ended.metrics.guardrails and ended.ratings_seen is None
    assert "objective: imported" in (deployment.config.runs / ended.id / "card.md").read_text()
    lines = deployment.database.read(lambda db: audit.latest(db))
    assert [line.detail["adapter_id"] for line in lines if line.action == "adapter.import"] == [candidate.id]
    again = bring(folder, "--json", code=0 if ended.outcome != "promoted" else 1)
    if ended.outcome != "promoted":
        assert json.loads(again.stdout)["adapter_id"] == candidate.id
        assert [adapter.state for adapter in stored(deployment)] == ["candidate"], (
            "the same twice: one adapter"
        )


def test_a_judging_run_that_is_queued_is_not_pushed_aside_by_a_second_import(
    deployment: Deployment, foreign: Foreign, bring: Import
) -> None:
    bring(foreign())
    assert "import the adapter after it" in bring(foreign("other", r=8), code=1).stderr
    assert len(stored(deployment)) == 1 and len(list(deployment.config.adapters.iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head'] is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern = {'q_proj': 2} is not supported"),
        ({"r": 300}, "rank 300 is not between 1 and 256"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
    ],
)
def test_what_the_engine_does_not_serve_is_refused_by_its_name(
    deployment: Deployment, foreign: Foreign, bring: Import, changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in bring(foreign(**changes), code=1).stderr
    assert stored(deployment) == []


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _without_config(folder: Path) -> None:
    (folder / "checkpoint-9").mkdir()
    (folder / "adapter_config.json").rename(folder / "checkpoint-9" / "adapter_config.json")


def _cut_off(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def _other_base(folder: Path) -> None:
    _configure(folder, base_model_name_or_path="meta/Llama-9-8B")


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _wider(folder: Path) -> None:
    _rewrite(folder, lambda tensor: torch.cat([tensor, tensor], dim=-1))


def _not_finite(folder: Path) -> None:
    _rewrite(folder, lambda tensor: torch.full_like(tensor, float("nan")))


def _integers(folder: Path) -> None:
    _rewrite(folder, lambda tensor: tensor.to(torch.int8))


def _half_missing(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if "lora_B" not in key}, file)


def _configure(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _rewrite(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({key: change(value).contiguous() for key, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_pickled, "adapter_model.bin may hold pickled code and is never loaded"),
        (_without_config, "is no PEFT adapter. There is one in"),
        (_cut_off, "is not a valid safetensors file"),
        (_other_base, "says that it was trained for meta/Llama-9-8B, and"),
        (_no_json, "is not valid JSON"),
        (_wider, "has shapes"),
        (_not_finite, "holds values that are not finite numbers. Nothing was imported."),
        (_integers, "is of type I8, not a float"),
        (_half_missing, "has only one of lora_A and lora_B"),
    ],
)
def test_a_folder_that_is_no_adapter_for_this_base_gets_its_sentence(
    deployment: Deployment,
    foreign: Foreign,
    bring: Import,
    damage: Callable[[Path], None],
    sentence: str,
) -> None:
    folder = foreign()
    damage(folder)
    assert sentence in bring(folder, code=1).stderr
    assert stored(deployment) == []
    assert not deployment.config.adapters.exists() or not list(deployment.config.adapters.iterdir())


def test_another_name_of_the_same_base_and_rank_stabilised_lora_are_taken(
    deployment: Deployment, foreign: Foreign, bring: Import
) -> None:
    folder = foreign(use_rslora=True)
    _configure(folder, base_model_name_or_path="someone/my-copy")
    bring(folder, "--dry-run", code=1)
    assert "it fits" in bring(folder, "--dry-run", "--same-base").stdout
    assert stored(deployment) == []


def test_the_widths_of_a_prepared_base_are_those_of_its_loaded_layers(tiny_folder: Path) -> None:
    model = load_base(tiny_folder, "cpu", "serve", execution="dense").model
    head = model.get_output_embeddings()
    loaded = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    assert base_widths(tiny_folder) == loaded
