"""What `strop adapters export` writes, loaded with the libraries that others use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bot.cli.app import app
from bot.serving.engine.lora import RowPlan, read_adapter, wrap_linears
from bot.serving.model.loading import load_base, read_info
from storage.admin import audit
from storage.config import load_config
from storage.db.database import Database
from storage.learning import adapters
from tests.bot.serving.builders import lora_config, lora_tensors, write_adapter

SCOPE = "guild:1"
Export = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment with one candidate for the tiny base."""
    monkeypatch.setenv("STROP_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {"STROP_HOME": str(tmp_path / "data")})
    shutil.copytree(tiny_folder, config.models / tiny_folder.name)
    info = read_info(tiny_folder)
    widths = wrap_linears(load_base(tiny_folder, "cpu", "serve", execution="dense").model, RowPlan())
    folder = write_adapter(
        config.adapters,
        base_hash=info.hash,
        chat_template_hash=info.chat_template_hash,
        tensors=lora_tensors(widths, size=0.1),
        config=lora_config(base_model_name_or_path=info.id),
    )
    with Database.open(config.database) as database:
        database.write(
            lambda db: adapters.insert_candidate(
                db, adapter_id=folder.name, scope=SCOPE, base_hash=info.hash, path=f"adapters/{folder.name}"
            )
        )
    return config.home


@pytest.fixture
def adapter(home: Path) -> Path:
    config = load_config(None, {"STROP_HOME": str(home)})
    return next(config.adapters.iterdir())


@pytest.fixture
def export(home: Path) -> Export:
    def run(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["adapters", "export", *arguments])
        assert result.exit_code == code, f"{result.output} {result.stderr} {result.exception!r}"
        return result

    return run


IDS = torch.tensor([[1, 40, 50, 60, 70, 80, 90]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found.float()


def served(tiny_folder: Path, adapter: Path) -> torch.Tensor:
    """Return what our own engine's layers compute with the adapter."""
    base = load_base(tiny_folder, "cpu", "serve", execution="dense")
    plan = RowPlan()
    widths = wrap_linears(base.model, plan)
    loaded = read_adapter(
        adapter.name,
        adapter,
        adapters_dir=adapter.parent,
        base_hash=base.info.hash,
        chat_template_hash=base.info.chat_template_hash,
        widths=widths,
        dtype=torch.float32,
        device="cpu",
    )
    plain = logits(base.model)
    plan.assign([loaded], torch.device("cpu"))
    found = logits(base.model)
    assert (found - plain).abs().max() > 0.1, "the adapter must change something"
    return found


def test_an_exported_adapter_loads_with_plain_peft_and_computes_the_same(
    export: Export, adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    export(adapter.name[:6], str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    base = load_base(tiny_folder, "cpu", "serve", execution="dense").model
    tuned = PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.allclose(logits(tuned), served(tiny_folder, adapter), atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: ") and "library_name: peft" in card and adapter.name in card


def test_a_merged_model_loads_with_plain_transformers_and_computes_the_same(
    export: Export, adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    export(adapter.name, str(tmp_path / "whole"), "--merged", "--dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    assert torch.allclose(logits(model), served(tiny_folder, adapter), atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    ours = AutoTokenizer.from_pretrained(tiny_folder)
    assert tokenizer("Hello there").input_ids == ours("Hello there").input_ids
    assert tokenizer.chat_template == ours.chat_template
    export(adapter.name, str(tmp_path / "half"), "--merged")
    halved = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert halved.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: the same model, to about a hundredth.
    assert torch.allclose(logits(halved), logits(model), atol=0.15)


def test_a_gguf_export_holds_the_adapters_tensors_and_a_card(
    export: Export, adapter: Path, tmp_path: Path
) -> None:
    export(adapter.name, "--format", "gguf")
    out = tmp_path / f"{adapter.name}-gguf"
    assert {path.name for path in out.iterdir()} == {"README.md", "adapter.gguf"}
    reader = GGUFReader(out / "adapter.gguf")
    held = load_file(adapter / "adapter_model.safetensors")
    assert len(reader.tensors) == len(held)
    assert "library_name: gguf" in (out / "README.md").read_text()
    assert "--format is peft or gguf" in export(adapter.name, "x", "--format", "onnx", code=2).stderr
    assert "choose one" in export(adapter.name, "x", "--format", "gguf", "--merged", code=2).stderr


def test_an_export_is_audited_and_overwrites_nothing(
    export: Export, adapter: Path, home: Path, tmp_path: Path
) -> None:
    export(adapter.name)
    assert (tmp_path / adapter.name / "adapter_config.json").is_file()
    assert "is there already" in export(adapter.name, code=1).stderr
    assert "There is no folder" in export(adapter.name, str(tmp_path / "no" / "where"), code=1).stderr
    assert "--dtype is bfloat16 or float32" in export(adapter.name, "x", "--dtype", "int8", code=2).stderr
    with Database.open(load_config(None, {"STROP_HOME": str(home)}).database) as database:
        lines = database.read(audit.latest)
    assert [line.action for line in lines] == ["adapter.export"]


def test_what_is_damaged_tainted_or_without_its_base_is_not_exported(
    export: Export, adapter: Path, home: Path, tmp_path: Path
) -> None:
    config = load_config(None, {"STROP_HOME": str(home)})
    kept = config.models.rename(config.models.with_name("elsewhere"))
    assert "isn't prepared on this machine" in export(adapter.name, "w", "--merged", code=1).stderr
    kept.rename(config.models)
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    assert "does not have the hash in its manifest" in export(adapter.name, "w", code=1).stderr
    file.write_bytes(whole)
    with Database.open(config.database) as database:
        database.write(lambda db: adapters.set_state(db, adapter.name, "tainted"))
    assert "has since erased" in export(adapter.name, "w", code=1).stderr
    assert not (tmp_path / "w").exists() and not list(tmp_path.glob(".new-*"))
