import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bot.serving.errors import BaseRefusedError
from bot.serving.model import sources
from bot.serving.model.catalogue import CATALOGUE, Entry
from bot.serving.model.loading import (
    BaseInfo,
    available_bytes,
    choose_execution,
    load_base,
    read_info,
    resolve_device,
)
from bot.serving.model.memory import ParameterCounts
from bot.serving.model.quantize import find_prepared, prepare_base, reading_gguf_once
from bot.serving.model.sources import resolve
from tests.tiny_model import build_tiny_base, build_tiny_tokenizer


def prepare(base: Path | str, models_dir: Path) -> Path:
    return prepare_base(str(base), "", device="cpu", models_dir=models_dir)


def refusal(base: Path | str, models_dir: Path) -> str:
    with pytest.raises(BaseRefusedError) as error:
        prepare(base, models_dir)
    assert not list(models_dir.glob("*"))  # nothing half-made stays behind
    return str(error.value)


def test_a_second_start_uses_the_cached_base(tiny_source: Path, models_dir: Path, tiny_folder: Path) -> None:
    before = (tiny_folder / "model.safetensors").stat().st_mtime_ns
    said: list[str] = []
    again = prepare_base(str(tiny_source), "", device="cpu", models_dir=models_dir, progress=said.append)
    assert again == tiny_folder
    assert (tiny_folder / "model.safetensors").stat().st_mtime_ns == before
    assert not any("Quantizing" in line for line in said)


def test_the_hash_depends_on_the_source_and_on_nothing_else(tmp_path: Path, tiny_folder: Path) -> None:
    same = prepare(build_tiny_base(tmp_path / "copy"), tmp_path / "1")
    assert read_info(same).hash == read_info(tiny_folder).hash
    other = prepare(build_tiny_base(tmp_path / "other", seed=1), tmp_path / "2")
    assert read_info(other).hash != read_info(tiny_folder).hash


def test_a_changed_chat_template_is_another_base(tmp_path: Path, tiny_folder: Path) -> None:
    source = build_tiny_base(tmp_path / "tiny")
    template = source / "chat_template.jinja"
    template.write_text(template.read_text().replace("tiny test model", "small test model"))
    info = read_info(prepare(source, tmp_path / "models"))
    assert info.hash != read_info(tiny_folder).hash
    assert info.chat_template_hash != read_info(tiny_folder).chat_template_hash


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    source, models = build_tiny_base(tmp_path / "tiny"), tmp_path / "models"
    folder = prepare(source, models)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(BaseRefusedError, match="damaged"):
        load_base(folder, "cpu")
    assert prepare(source, models) == folder
    load_base(folder, "cpu")


def test_a_prepared_base_is_found_by_the_looks_of_its_source_s_files(tmp_path: Path) -> None:
    source, models = build_tiny_base(tmp_path / "tiny"), tmp_path / "models"
    named = resolve(str(source), "", automatic=CATALOGUE[0])
    assert find_prepared(named, models) is None
    folder = prepare(source, models)
    assert find_prepared(named, models) == folder
    # Another content of the same size isn't taken for it, nor a base that isn't whole.
    weights = source / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert find_prepared(named, models) is None
    assert prepare(source, models) != folder
    (prepare(source, models) / "model.safetensors").write_bytes(b"")
    assert find_prepared(named, models) is None


def test_no_temporary_folder_stays_behind(models_dir: Path, tiny_folder: Path) -> None:
    assert tiny_folder.parent == models_dir
    assert not list(models_dir.glob(".new-*"))


def test_a_loaded_base_is_frozen_and_in_evaluation(tiny_folder: Path) -> None:
    base = load_base(tiny_folder, "cpu")
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.info.context_tokens == 512
    assert AutoTokenizer.from_pretrained(tiny_folder).chat_template


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("/does/not/exist", "does not exist"),
        ("./missing.gguf", "does not exist"),
        ("not a name!", "neither a folder"),
    ],
)
def test_a_base_that_does_not_exist_is_refused(base: str, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(base, tmp_path / "models")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "neither a config.json nor" in refusal(tmp_path / "empty", tmp_path / "models")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    source = build_tiny_base(tmp_path / "tiny")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "pickled" in refusal(source, tmp_path / "models")


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    source = build_tiny_base(tmp_path / "tiny")
    (source / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(source, tmp_path / "models")


def test_another_kind_of_model_is_refused_by_name(tmp_path: Path) -> None:
    source = build_tiny_base(tmp_path / "tiny")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "is a gpt2 model" in refusal(source, tmp_path / "models")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    source = build_tiny_base(tmp_path / "tiny")
    (source / "model.safetensors").write_bytes(b"\xff" * 1000)
    assert "cannot be read" in refusal(source, tmp_path / "models")


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    source = build_tiny_base(tmp_path / "tiny")
    tensors = load_file(source / "model.safetensors")
    tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert "lacks the weights model.layers.1.mlp.down_proj.weight" in refusal(source, tmp_path / "models")


def test_widths_that_cannot_be_packed_are_refused_by_name(tmp_path: Path) -> None:
    source = tmp_path / "odd"
    build_tiny_tokenizer().save_pretrained(source)
    config = LlamaConfig(
        vocab_size=416,
        hidden_size=64,
        intermediate_size=72,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(source)
    assert "model.layers.0.mlp.gate_proj is 72 x 64" in refusal(source, tmp_path / "models")


def huge() -> BaseInfo:
    return BaseInfo("huge", "", "", "", "llama", 4096, 10**14, 10**12, {})


def test_a_base_that_does_not_fit_is_refused_with_both_figures() -> None:
    with pytest.raises(BaseRefusedError, match=r"needs 5\d{4,}\.\d GB of memory and \d+\.\d GB is available"):
        choose_execution(huge(), "cpu")


def test_without_a_compiler_dense_gives_way_to_packed_where_only_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = BaseInfo("big", "", "", "", "llama", 4096, available_bytes("cpu") // 3, 0, {})
    assert choose_execution(info, "cpu")[0] == "mapped"
    monkeypatch.setattr("bot.serving.model.loading.load_library", lambda: None)
    assert choose_execution(info, "cpu")[0] == "packed"


def test_memory_estimates_grow_with_the_form() -> None:
    counts = ParameterCounts(linear=106_168_320, other=28_346_688)
    assert counts.mapped_bytes() < counts.packed_bytes() < counts.dense_bytes()
    assert 900e6 < counts.dense_bytes() < 1100e6


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(BaseRefusedError, match="no CUDA GPU"):
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.id)
def test_auto_is_the_packaged_base_or_one_that_is_pinned(entry: Entry) -> None:
    found = sources.resolve("auto", "", automatic=entry)
    if entry.is_bundled:
        assert found == sources.packaged_base()
    else:
        assert (found.kind, found.id, len(found.revision)) == ("hub", entry.id, 40)


def test_a_prepared_hub_base_is_found_without_a_network(tmp_path: Path, tiny_folder: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_folder, models / tiny_folder.name)
    info_file = models / tiny_folder.name / "base.json"
    info = json.loads(info_file.read_text())
    info_file.write_text(json.dumps({**info, "id": "owner/tiny", "source": "hub:owner/tiny@abc"}))
    found = prepare_base("owner/tiny", "", device="cpu", models_dir=models)
    assert found == models / tiny_folder.name
    assert prepare_base("owner/tiny", "abc", device="cpu", models_dir=models) == found


def test_a_gguf_header_is_read_once_and_as_its_own_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "über", "日本"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    writer.add_tensor("output_norm.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.GGUFReader(path)
    with reading_gguf_once():
        found = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is found
    assert gguf.GGUFReader(path) is not found
    contents = [{name: field.contents() for name, field in each.fields.items()} for each in (found, expected)]
    assert contents[0] == contents[1]
    assert (found.tensors[0].data == expected.tensors[0].data).all()
