from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from bot.serving.engine.lora import Adapter, RowPlan, read_adapter, wrap_linears
from bot.serving.errors import AdapterRefusedError
from bot.serving.model.adapter_files import write_manifest
from tests.bot.serving.builders import TARGETS, lora_config, lora_tensors, memory_adapter, write_adapter

BASE, TEMPLATE = "b" * 64, "c" * 64
SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "attn_implementation": "sdpa",
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=8),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(**{**SHAPE, "attn_implementation": "eager"}, sliding_window=8),
    "gemma3": Gemma3TextConfig(**SHAPE, sliding_window=8, sliding_window_pattern=2),
}


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def load(folder: Path, widths: dict[str, tuple[int, int]]) -> Adapter:
    return read_adapter(
        folder.name,
        folder,
        adapters_dir=folder.parent,
        base_hash=BASE,
        chat_template_hash=TEMPLATE,
        widths=widths,
        dtype=torch.float32,
        device="cpu",
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_an_adapter_saved_by_peft_gives_pefts_logits(
    name: str, rank_stabilised: bool, tmp_path: Path
) -> None:
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(1))
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
        use_rslora=rank_stabilised,
        init_lora_weights=False,
    )
    torch.manual_seed(2)
    tuned = get_peft_model(tiny(name), config)
    work = tmp_path / "work"
    tuned.save_pretrained(work)
    (work / "README.md").unlink()
    adapter_id = write_manifest(work, base_hash=BASE, chat_template_hash=TEMPLATE, extra={})
    folder = work.rename(tmp_path / adapter_id)

    ours, plan = tiny(name), RowPlan()
    adapter = load(folder, wrap_linears(ours, plan))
    plan.assign([adapter, adapter], torch.device("cpu"))
    with torch.inference_mode():
        expected = tuned.eval()(input_ids=ids).logits
        base = tiny(name)(input_ids=ids).logits
        assert torch.allclose(ours(input_ids=ids).logits, expected, atol=1e-4)
        assert not torch.allclose(base, expected, atol=1e-2)


def test_each_row_of_a_batch_has_its_own_adapter() -> None:
    plan = RowPlan()
    model = tiny("llama")
    ids = torch.randint(0, 96, (1, 12), generator=torch.Generator().manual_seed(1))
    widths = wrap_linears(model, plan)
    adapters = [None, *(memory_adapter(str(seed), widths, seed=seed) for seed in (1, 2))]
    order = [1, 0, 2, 2, 1, 0]
    with torch.inference_mode():
        alone = []
        for adapter in adapters:
            plan.assign([adapter], torch.device("cpu"))
            alone.append(model(input_ids=ids).logits[0])
        plan.assign([adapters[i] for i in order], torch.device("cpu"))
        mixed = model(input_ids=ids.repeat(len(order), 1)).logits
    for row, which in enumerate(order):
        assert torch.allclose(mixed[row], alone[which], atol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    assert not torch.allclose(alone[1], alone[2], atol=1e-2)


WIDTHS = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.0.mlp.up_proj": (64, 128)}


def refused(tmp_path: Path, **changes: Any) -> str:
    folder = write_adapter(
        tmp_path / "adapters",
        base_hash=BASE,
        chat_template_hash=TEMPLATE,
        tensors=changes.pop("tensors", lora_tensors(WIDTHS)),
        config={**lora_config(), **changes},
    )
    with pytest.raises(AdapterRefusedError) as error:
        load(folder, WIDTHS)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("init_lora_weights", "pissa_niter_4"),
        ("target_parameters", ["experts"]),
        ("a_future_option", 3),
    ],
)
def test_anything_but_plain_lora_is_refused_by_name(key: str, value: object, tmp_path: Path) -> None:
    assert key in refused(tmp_path, **{key: value})


@pytest.mark.parametrize("rank", [0, -1, 1000, True, "8", None, 4.0])
def test_a_rank_out_of_bounds_is_refused(rank: object, tmp_path: Path) -> None:
    assert "rank" in refused(tmp_path, r=rank)


def test_a_rank_that_the_weights_do_not_have_is_refused(tmp_path: Path) -> None:
    assert "has shapes (4, 64)" in refused(tmp_path, r=8)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    wrong = lora_tensors({"model.layers.0.self_attn.q_proj": (32, 64)})
    assert "has shapes" in refused(tmp_path, tensors=wrong)


def test_weights_for_a_layer_that_the_base_lacks_are_refused(tmp_path: Path) -> None:
    assert "no linear layer model.layers.9" in refused(
        tmp_path, tensors=lora_tensors({"model.layers.9.self_attn.q_proj": (64, 64)})
    )


def test_a_foreign_tensor_is_refused(tmp_path: Path) -> None:
    tensors = {**lora_tensors(WIDTHS), "base_model.model.lm_head.weight": torch.zeros(2, 2)}
    assert "not a LoRA weight" in refused(tmp_path, tensors=tensors)


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    tensors = lora_tensors(WIDTHS)
    tensors.pop("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight")
    assert "only one of lora_A and lora_B" in refused(tmp_path, tensors=tensors)


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    tensors = lora_tensors(WIDTHS)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"][0, 0] = float("nan")
    assert "not finite" in refused(tmp_path, tensors=tensors)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    (work / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    adapter_id = write_manifest(work, base_hash=BASE, chat_template_hash=TEMPLATE, extra={})
    with pytest.raises(AdapterRefusedError, match="not a valid safetensors file"):
        load(work.rename(tmp_path / adapter_id), WIDTHS)
