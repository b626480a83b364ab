"""The base model: quantized once to NF4, cached on disk, loaded by the server and by the trainer alike.

Whatever the machine, the weights that multiply are the NF4 values with double quantization. How they are held
is the *execution*: ``mapped`` leaves them in the file and multiplies them by Strop's own CPU kernels,
``packed`` leaves them to bitsandbytes (CUDA), and ``dense`` unfolds the very same values once to float32 (a
CPU without a compiler).
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bot.serving.errors import BaseRefusedError
from bot.serving.model.catalogue import Machine
from bot.serving.model.identity import BaseIdentity, identify
from bot.serving.model.memory import ParameterCounts, available_main_memory, format_gb, total_main_memory
from bot.serving.model.processors import usable_cores
from bot.serving.native.library import Integers, load_library
from bot.serving.native.loading import load_mapped

# Where a CPU has AVX512-BF16, bitsandbytes advises at its import to install `kernels`, which would fetch
# native code from the hub: advice that nobody should take, in a log that should be quiet.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

Purpose: TypeAlias = Literal["serve", "train"]
Execution: TypeAlias = Literal["mapped", "packed", "dense"]
Precision: TypeAlias = Literal["exact", "fast"]

INFO_FILE = "base.json"
FORMAT = 1
QUANTIZATION: dict[str, object] = {"type": "nf4", "double": True, "block": 64, "compute": "bfloat16"}


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What ``base.json`` says about a prepared base.

    ``files`` maps each file to its size in bytes; ``content`` is the hash of the source's files, where those
    and not the hub say which base it is.
    """

    id: str
    source: str
    hash: str
    chat_template_hash: str
    model_type: str
    context_tokens: int
    linear_parameters: int
    other_parameters: int
    files: dict[str, int]
    format: int = FORMAT
    content: str = ""

    @property
    def identity(self) -> BaseIdentity:
        """Which base this is, apart from its precision."""
        return identify(self.source, self.content, self.chat_template_hash)

    @property
    def parameters(self) -> int:
        """Return how many weights it has."""
        return self.linear_parameters + self.other_parameters

    def counts(self) -> ParameterCounts:
        """Return the parameter counts for memory estimates."""
        return ParameterCounts(self.linear_parameters, self.other_parameters)


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in memory. The model is in eval mode for serving, its weights are frozen in both cases."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: BaseInfo
    folder: Path
    device: str
    execution: Execution
    precision: Precision = "exact"

    @property
    def arithmetic(self) -> str:
        """How 4-bit weights are multiplied."""
        if self._integers is Integers.NONE:
            return str(self.dtype).removeprefix("torch.")
        return f"16-bit integers ({self._integers.name.replace('_', '-')})"

    @property
    def cache_dtype(self) -> torch.dtype:
        """In what keys and values are kept: in 16 bits where weights are multiplied so."""
        return self.dtype if self._integers is Integers.NONE else torch.float16

    @property
    def _integers(self) -> Integers:
        library = load_library() if self.execution == "mapped" and self.precision == "fast" else None
        return Integers.NONE if library is None else library.integers

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which activations and adapters multiply."""
        return torch.bfloat16 if self.execution == "packed" else torch.float32


def resolve_device(device: str) -> str:
    """Turn ``auto`` into ``cuda`` or ``cpu``.

    Raises:
        BaseRefusedError: CUDA is asked for and absent.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BaseRefusedError("[model] device is cuda, but torch finds no CUDA GPU; set it to auto or cpu.")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise BaseRefusedError(f"[model] device is {device!r}; use auto, cpu or cuda.")
    return device


def available_bytes(device: str) -> int:
    """Return the memory that a new allocation may use on ``device``."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return available_main_memory()


def machine(device: str) -> Machine:
    """Return what there is to run on."""
    gpu = int(torch.cuda.mem_get_info(torch.device(device))[1]) if device.startswith("cuda") else 0
    return Machine(usable_cores(), total_main_memory() or available_main_memory(), gpu)


def choose_execution(info: BaseInfo, device: str, taken: int = 0) -> tuple[Execution, int]:
    """Choose how to hold the 4-bit weights; return the form and its bytes.

    ``taken`` is what other processes will still take of what is free.

    Raises:
        BaseRefusedError: the memory does not suffice for any form; the text names both figures.
    """
    counts, available = info.counts(), max(available_bytes(device) - taken, 0)
    forms: dict[Execution, int] = {"packed": counts.cuda_bytes()}
    if not device.startswith("cuda"):
        forms = {"dense": counts.dense_bytes(), "packed": counts.packed_bytes()}
        if load_library() is not None:
            forms = {"mapped": counts.mapped_bytes(), **forms}
    for form, needed in forms.items():
        if needed <= available:
            return form, needed
    smallest = min(forms.values())
    raise BaseRefusedError(
        f"The base {info.id} needs {format_gb(smallest)} of memory and {format_gb(available)} is "
        "available; choose a smaller [model] base or free memory."
    )


def read_info(folder: Path) -> BaseInfo:
    """Read ``base.json`` of a prepared base and check that every file is there in full.

    Raises:
        BaseRefusedError: the folder is not a complete prepared base.
    """
    try:
        info = BaseInfo(**json.loads((folder / INFO_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BaseRefusedError(
            f"{folder} is not a prepared base (its {INFO_FILE} cannot be read)."
        ) from error
    if info.format != FORMAT:
        raise BaseRefusedError(
            f"The prepared base {folder} has format {info.format}, not {FORMAT}; delete it."
        )
    for name, size in info.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise BaseRefusedError(
                f"The prepared base {folder} is damaged ({name}); delete the folder and restart."
            )
    return info


def write_info(folder: Path, info: BaseInfo) -> None:
    """Write ``base.json`` in one step."""
    work = folder / f".{INFO_FILE}.new"
    work.write_text(json.dumps(asdict(info), indent=2), encoding="utf-8")
    work.replace(folder / INFO_FILE)


def load_base(
    folder: Path,
    device: str = "auto",
    purpose: Purpose = "serve",
    *,
    execution: Execution | None = None,
    precision: Precision = "exact",
    attention: str = "sdpa",
) -> LoadedBase:
    """Load a prepared base for serving or for training.

    For training on a CPU with bitsandbytes' layers the packing that ends backward passes silently is switched
    off.

    Args:
        folder: a folder made by :func:`bot.serving.model.quantize.prepare_base`, as ``/health`` names it.
        device: ``auto``, ``cpu`` or ``cuda``.
        purpose: ``serve`` or ``train``.
        execution: forces how weights are held; by default the fastest that fits.
        precision: whether Strop's kernels may multiply 4-bit weights in 16-bit integers (``fast``), or in
            float32 alone (``exact``), as training does.
        attention: transformers' attention implementation.

    Raises:
        BaseRefusedError: the folder is incomplete, or the memory does not suffice.
    """
    info = read_info(folder)
    device = resolve_device(device)
    chosen = execution or choose_execution(info, device)[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Soft-capped attention (Gemma 2) exists only in the eager implementation.
    capped = info.model_type == "gemma2" and attention == "sdpa"
    attention = "eager" if capped else attention
    if chosen == "mapped":
        model = load_mapped(folder, attention, fast=precision == "fast")
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            device_map={"": device},
            attn_implementation=attention,
            local_files_only=True,
        )
    if chosen == "dense":
        unfold(model)
    elif chosen == "packed" and purpose == "train":
        _forbid_packing(model)
    model.requires_grad_(False)
    model.train(purpose == "train")
    return LoadedBase(model, tokenizer, info, folder, device, chosen, precision)


def unfold(model: PreTrainedModel) -> None:
    """Replace every 4-bit layer by a float32 one with the same values, in bf16 precision as CUDA has them."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _dense_linear(module))
    # The model no longer is a quantized one: transformers, PEFT and TRL treat it as plain float32 from here.
    model.is_quantized = False
    model.is_loaded_in_4bit = False
    model.hf_quantizer = None
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.float()
    model.config.dtype = torch.float32


def _dense_linear(module: Any) -> nn.Linear:
    import bitsandbytes as bnb

    values = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    with torch.device("meta"):
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    linear.weight = nn.Parameter(values.to(torch.float32), requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.data.to(torch.float32), requires_grad=False)
    return linear


def _forbid_packing(model: nn.Module) -> None:
    """A packed layer passes no gradient back (bitsandbytes only warns once): never pack while training."""
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def hash_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identify the chat template (sha256 of its text); adapters are bound to it."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
