"""A GGUF adapter holds what the PEFT folder holds, and llama.cpp computes with it what PEFT does."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from bot.serving.errors import AdapterRefusedError
from bot.serving.model.shapes import MODEL_TYPES
from tests.bot.serving.builders import lora_config, lora_tensors
from trainer.lora_gguf import ARCHITECTURES, reorder_rows, tensor_names, write_lora_gguf

# The Python in which `make test-gguf` keeps llama.cpp.
LLAMA_CPP = os.environ.get("TEST_LLAMA_CPP", "")
LAYERS, HEADS, KV_HEADS, WIDTH, VOCABULARY = 4, 4, 2, 16, 96
_PLAIN = (
    *(f"self_attn.{each}_proj" for each in "qkvo"),
    *(f"mlp.{each}_proj" for each in ("gate", "up", "down")),
)
_FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
NEIGHBOURS = {"granite", "llama", "ministral3", "mistral", "smollm3"}
# llama.cpp takes Gemma's scale of attention from the width of a head, and its output from the embedding.
_GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": WIDTH, "sliding_window": 64}
SETTINGS: dict[str, dict[str, Any]] = {
    "gemma": {"tie_word_embeddings": True},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.5,
        "residual_multiplier": 0.7,
    },
    "olmo3": {"sliding_window": 64},
}


def config_of(kind: str) -> Any:
    return AutoConfig.for_model(
        kind,
        hidden_size=HEADS * WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        pad_token_id=0,
        **{"tie_word_embeddings": False} | SETTINGS.get(kind, {}),
    )


def adapter_of(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a PEFT folder with random weights on every linear layer."""
    linears = _FUSED if kind == "phi3" else _PLAIN
    query, kv, hidden = HEADS * WIDTH, KV_HEADS * WIDTH, HEADS * WIDTH
    sizes = {
        "q_proj": (hidden, query), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (query, hidden),
        "qkv_proj": (hidden, query + 2 * kv), "gate_up_proj": (hidden, 256), "gate_proj": (hidden, 128),
        "up_proj": (hidden, 128), "down_proj": (128, hidden),
    }  # fmt: skip
    widths = {
        f"model.layers.{layer}.{name}": sizes[name.partition(".")[2]]
        for layer in range(LAYERS)
        for name in linears
    }
    folder.mkdir()
    names = [name.partition(".")[2] for name in linears]
    config = lora_config(**{"target_modules": names, **changes})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(lora_tensors(widths, size=0.2), folder / "adapter_model.safetensors")
    return folder


def original_order(rows: numpy.ndarray[Any, Any], heads: int) -> numpy.ndarray[Any, Any]:
    """Undo the order of llama.cpp's files row by row: neighbours 2i, 2i+1 were i and half + i."""
    half = rows.shape[0] // heads // 2
    back = numpy.empty_like(rows)
    for head in range(heads):
        for i in range(half):
            first = head * 2 * half
            back[first + i], back[first + half + i] = rows[first + 2 * i], rows[first + 2 * i + 1]
    return back


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_every_pair_is_there_with_its_name_shape_and_values(tmp_path: Path, kind: str) -> None:
    adapter = adapter_of(tmp_path / "a1", kind)
    write_lora_gguf(adapter, config_of(kind).to_dict(), tmp_path / "a1.gguf")
    reader = GGUFReader(tmp_path / "a1.gguf")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    held = load_file(adapter / "adapter_model.safetensors")
    names = tensor_names(ARCHITECTURES[kind], LAYERS)
    for key, tensor in held.items():
        module, _, half = key.removeprefix("base_model.model.").rpartition(".lora_")
        name = names.get_name(module)
        values = found.pop(f"{name}.weight.lora_{half[0].lower()}")
        if half[0] == "B" and kind in NEIGHBOURS and name.endswith(("attn_q", "attn_k")):
            values = original_order(values, HEADS if name.endswith("attn_q") else KV_HEADS)
        assert values.dtype == numpy.float32
        assert numpy.array_equal(values, tensor.numpy()), key
    assert found == {}
    text = {name: reader.get_field(name).contents() for name in ("general.type", "general.architecture")}
    assert text == {"general.type": "adapter", "general.architecture": ARCHITECTURES[kind]}
    assert reader.get_field("adapter.type").contents() == "lora"
    assert float(reader.get_field("adapter.lora.alpha").contents()) == 8.0


def test_alpha_gives_pefts_scale_also_where_the_rank_is_stabilised(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "a1", "llama", use_rslora=True)
    write_lora_gguf(adapter, config_of("llama").to_dict(), tmp_path / "a1.gguf")
    alpha = float(GGUFReader(tmp_path / "a1.gguf").get_field("adapter.lora.alpha").contents())
    assert alpha / 4 == pytest.approx(8 / math.sqrt(4))


def test_what_llama_cpp_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "a1", "llama")
    with pytest.raises(AdapterRefusedError, match="no GGUF form of a t5 model"):
        write_lora_gguf(adapter, {"model_type": "t5", "num_hidden_layers": 1}, tmp_path / "x.gguf")
    config = {**config_of("llama").to_dict(), "num_hidden_layers": LAYERS - 1}
    with pytest.raises(AdapterRefusedError, match=r"no tensor for model\.layers\.3"):
        write_lora_gguf(adapter, config, tmp_path / "x.gguf")


_LOGITS = """
import json, sys
import numpy
from llama_cpp import Llama

base, lora, ids, out = sys.argv[1:]
model = Llama(base, lora_path=lora or None, n_ctx=64, n_batch=64, logits_all=True, verbose=False)
model.eval(json.loads(ids))
numpy.save(out, model.scores[: len(json.loads(ids))])
"""


def write_base(model: Any, kind: str, target: Path) -> None:
    """Write a tiny model as a GGUF file in float32, without a tokenizer: token ids are compared."""
    config, architecture = model.config, ARCHITECTURES[kind]
    names = tensor_names(architecture, LAYERS)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(WIDTH)
    writer.add_value_length(WIDTH)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH)
    rope = config.to_dict()["rope_parameters"]
    # By kind of layer: of the ones with a window llama.cpp knows it by the architecture.
    writer.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    _add_settings(writer, kind, config.to_dict())
    for key, tensor in model.state_dict().items():
        module, _, part = key.rpartition(".")
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        name = names.get_name(module)
        # Gemma multiplies by 1 + weight, llama.cpp by the weight.
        tensor = tensor + 1 if kind.startswith("gemma") and module.endswith("norm") else tensor
        rows = reorder_rows(tensor.float(), name, architecture, config.to_dict())
        writer.add_tensor(f"{name}.{part}", rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: gguf.GGUFWriter, kind: str, config: dict[str, Any]) -> None:
    """Write what only some architectures have, under the names that llama.cpp reads."""
    if kind == "phi3":
        writer.add_rope_scaling_orig_ctx_len(128)
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if kind == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
        writer.add_residual_scale(config["residual_multiplier"])
    if kind == "ministral3":
        rope = config["rope_parameters"]
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


@pytest.mark.gguf
@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_llama_cpp_computes_with_it_what_peft_computes_with_the_folder(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind)).float().eval()
    write_base(model, kind, tmp_path / "base.gguf")
    adapter = adapter_of(tmp_path / "a1", kind)
    write_lora_gguf(adapter, model.config.to_dict(), tmp_path / "lora.gguf")
    ids = [1, 40, 50, 60, 70, 80, 90, 12]
    with torch.inference_mode():
        plain = model(torch.tensor([ids])).logits[0].numpy()
        expected = PeftModel.from_pretrained(model, adapter)(torch.tensor([ids])).logits[0].numpy()
    assert abs(expected - plain).max() > 0.1, "the adapter must change something"
    found = {}
    for lora in ("", str(tmp_path / "lora.gguf")):
        command = [LLAMA_CPP, "-c", _LOGITS, str(tmp_path / "base.gguf"), lora, json.dumps(ids)]
        subprocess.run([*command, str(tmp_path / "logits.npy")], check=True, timeout=120)
        found[bool(lora)] = numpy.load(tmp_path / "logits.npy")
    # float32 on both sides; llama.cpp keeps keys and values in float16.
    assert abs(found[False] - plain).max() < 0.01
    assert abs(found[True] - expected).max() < 0.01
