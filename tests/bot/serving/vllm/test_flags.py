"""vLLM gets the flags that the loop needs, and nothing that opens it further than to this machine."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from bot.serving.errors import ServerStartError
from bot.serving.model.capabilities import BaseCapabilities
from bot.serving.protocol import BaseDescription
from bot.serving.settings import Settings
from bot.serving.vllm.child import STOP_LIMIT_S
from bot.serving.vllm.flags import Launch, largest_rank, launch, supported_rank
from bot.serving.vllm.replica import Replica


def started(device: str = "cpu", *, thinking_switch: str = "", kept_rank: int = 0, **changes: Any) -> Launch:
    settings = Settings(
        models_dir=Path("m"), adapters_dir=Path("a"), run_dir=Path("r"), **{"lora_rank": 16, **changes}
    )
    base = BaseDescription(
        "owner/base",
        hash="b" * 64,
        chat_template_hash="c" * 64,
        context_tokens=2048,
        device=device,
        capabilities=BaseCapabilities(thinking_switch=thinking_switch),
    )
    return launch(
        settings,
        python=Path("/venv/bin/python"),
        weights=Path("/models/base"),
        base=base,
        linear_layers=("o_proj", "q_proj"),
        port=8601,
        secret="s3cret",
        kept_rank=kept_rank,
        environment={"PATH": "/bin", "DISCORD_TOKEN": "token", "VLLM_SERVER_DEV_MODE": "1"},
    )


def flag(started: Launch, name: str) -> str:
    return started.argv[started.argv.index(name) + 1]


def test_adapters_priorities_and_length_are_as_configured() -> None:
    found = started(slots=6, lora_rank=20)
    assert found.argv[0] == "/venv/bin/python"
    assert (flag(found, "--model"), flag(found, "--served-model-name")) == ("/models/base", "owner/base")
    assert (flag(found, "--max-lora-rank"), flag(found, "--max-num-seqs")) == ("32", "6")
    assert 0 < int(flag(found, "--shutdown-timeout")) < STOP_LIMIT_S
    assert (flag(found, "--scheduling-policy"), flag(found, "--max-model-len")) == ("priority", "2048")
    assert "--enable-lora" in found.argv


def test_adapters_change_the_layers_of_the_base_and_never_its_head(tiny_folder: Path) -> None:
    from bot.serving.vllm.preparing import linear_layers

    argv = started().argv
    at = argv.index("--lora-target-modules")
    assert argv[at + 1 : at + 4] == ("o_proj", "q_proj", "--middleware")
    names = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert linear_layers(tiny_folder) == names


def test_only_this_machine_reaches_it_and_no_secret_is_on_its_command_line() -> None:
    found = started()
    assert flag(found, "--host") == "127.0.0.1"
    assert found.env["VLLM_API_KEY"] == "s3cret"
    assert not any("s3cret" in argument for argument in found.argv)
    assert not {"DISCORD_TOKEN", "VLLM_SERVER_DEV_MODE"} & set(found.env)
    assert found.env["PATH"] == "/bin"
    with pytest.raises(ServerStartError, match="a proxy with an allow-list"):
        started(host="0.0.0.0", api_key="k" * 20)


def test_the_resolver_is_told_whose_adapters_may_be_served() -> None:
    env = started().env
    assert (env["VLLM_PLUGINS"], env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]) == ("strop_resolver", "1")
    assert env["STROP_ADAPTERS_DIR"] == str(Path("a").resolve())
    assert (env["STROP_BASE_HASH"], env["STROP_CHAT_TEMPLATE_HASH"]) == ("b" * 64, "c" * 64)


def test_each_replica_says_which_base_it_serves_and_looks_for_its_adapters() -> None:
    found = started()
    module, _, name = flag(found, "--middleware").rpartition(".")
    assert getattr(importlib.import_module(module), name) is Replica
    described = json.loads(found.env["STROP_BASE"])
    assert (described["id"], described["hash"]) == ("owner/base", "b" * 64)


def test_thinking_is_switched_off_where_the_template_knows_how() -> None:
    assert json.loads(flag(started(thinking_switch="enable_thinking"), "--default-chat-template-kwargs")) == {
        "enable_thinking": False
    }
    assert "--default-chat-template-kwargs" not in started().argv


def test_a_gpu_shares_its_memory_and_a_cpu_needs_no_graphs() -> None:
    assert "--gpu-memory-utilization" in started("cuda").argv
    assert "--enforce-eager" not in started("cuda").argv
    assert "--enforce-eager" in started("cpu").argv
    assert started("cpu", threads=3).env["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in started("cuda").env


@pytest.mark.parametrize(("rank", "taken"), [(1, 1), (2, 8), (8, 8), (16, 16), (17, 32), (512, 512)])
def test_a_rank_that_vllm_has_no_kernel_for_gets_the_next_one(rank: int, taken: int) -> None:
    assert supported_rank(rank) == taken


def test_a_rank_beyond_all_is_refused() -> None:
    with pytest.raises(ServerStartError, match="up to rank 512"):
        supported_rank(513)


def test_adapters_that_are_there_keep_their_rank_when_the_configured_one_is_lowered(tmp_path: Path) -> None:
    assert largest_rank(tmp_path / "adapters") == 0
    for name, config in {"a": '{"r": 24}', "b": '{"r": 8}', "c": '{"r": 600}', "d": "{", "e": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(config)
    (tmp_path / "file").touch()
    assert largest_rank(tmp_path) == 24
    assert flag(started(lora_rank=16, kept_rank=24), "--max-lora-rank") == "32"
