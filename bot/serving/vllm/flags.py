"""The command line and the environment with which vLLM is started (torch-free).

Source: vllm/engine/arg_utils.py, vllm/entrypoints/openai/cli_args.py and vllm/envs.py of vLLM 0.32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.serving.errors import ServerStartError
from bot.serving.model.adapter_files import CONFIG
from bot.serving.model.identity import NF4
from bot.serving.protocol import BaseDescription
from bot.serving.settings import Settings
from bot.serving.vllm.replica import BASE, MIDDLEWARE
from bot.serving.vllm.resolver import ADAPTERS_DIR, BASE_HASH, CHAT_TEMPLATE_HASH, PLUGIN

# The ranks that vLLM has kernels for.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Adapters in one batch, and kept in main memory beside: each community may have its own champion and canary.
MAX_LORAS = 8
MAX_CPU_LORAS = 32
# Training shares the card: what vLLM reserves is not there for it.
GPU_MEMORY_SHARE = 0.6
# The entry point of vllm-bnb-plugin, which then finds in the base's config.json that it is in 4 bits.
BITSANDBYTES = "bitsandbytes"
CPU_CACHE_GB = 1
# Replies that have begun may end within so long, once vLLM is told to; by default it drops them.
DRAIN_S = 8
# Secrets of other services, what would open developer routes, and our own search path.
_KEPT_OUT = ("VLLM_SERVER_DEV_MODE", "PYTHONPATH", "DISCORD_TOKEN", "DISCORD_TOKEN_FILE", "STROP_API_KEY")


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started: a command and its environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def launch(
    settings: Settings,
    *,
    python: Path,
    weights: Path,
    base: BaseDescription,
    linear_layers: Sequence[str],
    port: int,
    secret: str,
    environment: Mapping[str, str],
    kept_rank: int = 0,
) -> Launch:
    """Return how to start vLLM on the `weights` of a base; only loopback ever reaches it.

    `linear_layers` are the names of those that adapters change; `kept_rank` is the largest rank among the
    adapters that are there already.

    Raises:
        ServerStartError: the configuration wants something that vLLM can't be given.
    """
    if not settings.is_loopback():
        raise ServerStartError(
            f"[server] host is {settings.host}: vLLM guards too little by its API key to be reached by other "
            "machines. Bind to 127.0.0.1 and put a proxy with an allow-list in front of it."
        )
    on_cpu = not base.device.startswith("cuda")
    # `vllm serve` needs a distribution called vllm, which the CPU build isn't; 0.32 still has this entrance.
    argv = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(weights), "--served-model-name", base.id]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    argv += ["--dtype", "bfloat16", "--max-model-len", str(base.context_tokens)]
    argv += ["--max-num-seqs", str(settings.slots), "--scheduling-policy", "priority"]
    argv += ["--enable-lora", "--max-lora-rank", str(supported_rank(max(settings.lora_rank, kept_rank)))]
    argv += ["--max-loras", str(MAX_LORAS), "--max-cpu-loras", str(MAX_CPU_LORAS)]
    # Not the output head: no adapter has one, and vLLM 0.32 dies of scoring an adapter's prompt through its
    # own (the layer there counts sampled tokens only: vllm/lora/layers/logits_processor.py).
    argv += ["--lora-target-modules", *linear_layers]
    argv += ["--middleware", MIDDLEWARE, "--shutdown-timeout", str(DRAIN_S)]
    # The model's own sampling defaults would change what a request leaves open.
    argv += ["--generation-config", "vllm"]
    if base.capabilities.thinking_switch:
        argv += ["--default-chat-template-kwargs", json.dumps({base.capabilities.thinking_switch: False})]
    argv += ["--enforce-eager"] if on_cpu else ["--gpu-memory-utilization", str(GPU_MEMORY_SHARE)]
    return Launch(tuple(argv), _environment(settings, base, secret, environment, on_cpu=on_cpu))


def largest_rank(adapters_dir: Path) -> int:
    """Return the largest rank of the adapters in a folder that vLLM can serve; 0 without any.

    They were trained with other settings, or elsewhere, and vLLM has to be told at its start.
    """
    found = [0]
    for config in adapters_dir.glob(f"*/{CONFIG}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(int(json.loads(config.read_text(encoding="utf-8"))["r"]))
    return max(rank for rank in found if rank <= RANKS[-1])


def supported_rank(rank: int) -> int:
    """Return the least rank that vLLM takes and adapters of `rank` fit into.

    Raises:
        ServerStartError: none is large enough.
    """
    for each in RANKS:
        if each >= rank:
            return each
    raise ServerStartError(f"[trainer] rank is {rank}; vLLM serves adapters up to rank {RANKS[-1]}.")


def _environment(
    settings: Settings, base: BaseDescription, secret: str, environment: Mapping[str, str], *, on_cpu: bool
) -> dict[str, str]:
    found = {name: value for name, value in environment.items() if name not in _KEPT_OUT}
    found |= {
        # In the environment, not on the command line, which every user of the machine can read.
        "VLLM_API_KEY": secret,
        "VLLM_PLUGINS": f"{PLUGIN},{BITSANDBYTES}" if base.precision == NF4 else PLUGIN,
        # Without it vLLM asks no resolver.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        ADAPTERS_DIR: str(settings.adapters_dir.resolve()),
        BASE: json.dumps(dataclasses.asdict(base)),
        BASE_HASH: base.hash,
        CHAT_TEMPLATE_HASH: base.chat_template_hash,
    }
    if on_cpu:
        found |= {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GB), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        found |= {"OMP_NUM_THREADS": str(settings.threads or 1)}
    return found
