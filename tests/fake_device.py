"""A model of any size without memory, on a CPU or a GPU that need not be there: for counting, not computing.

Fake tensors know shape, precision and device and no numbers. A product of tensors on two devices fails as it
would on a real machine, and every live tensor can be counted.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from trainer.training.forward import torch_threads

# Places of device types in torch's registry (c10/core/DeviceType.h).
_CUDA, _META, _TYPES = 1, 14, 22


class Nf4Linear(bnb.nn.Linear4bit):  # type: ignore[misc]
    """A 4-bit layer of a shape, with a plain parameter in place of one that would quantize itself."""

    def __init__(self, shape: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = shape.in_features, shape.out_features
        self.compute_dtype = torch.bfloat16
        self.register_parameter("bias", shape.bias)
        weights = shape.in_features * shape.out_features
        weight: Any = nn.Parameter(torch.empty(weights // 2, 1, dtype=torch.uint8, device="meta"), False)
        nested = QuantState(
            absmax=torch.empty(-(-weights // (64 * 256)), device="meta"),
            blocksize=256,
            code=torch.empty(256, device="meta"),
            dtype=torch.float32,
        )
        weight.quant_state = QuantState(
            absmax=torch.empty(weights // 64, dtype=torch.uint8, device="meta"),
            shape=torch.Size((shape.out_features, shape.in_features)),
            dtype=torch.bfloat16,
            blocksize=64,
            quant_type="nf4",
            code=torch.empty(16, device="meta"),
            offset=torch.empty((), device="meta"),
            state2=nested,
        )
        weight.compress_statistics, weight.quant_type = True, "nf4"
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply as bitsandbytes' own layer does."""
        product = bnb.matmul_4bit(
            x.to(self.compute_dtype), self.weight, self.weight.quant_state, bias=self.bias
        )
        return product.to(x.dtype)  # type: ignore[no-any-return]


def shaped_base(config: PretrainedConfig, attention: str = "sdpa") -> PreTrainedModel:
    """Return a base of a configuration as CUDA holds it: 4-bit layers, the rest in bfloat16, no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Nf4Linear(module))
    model.config.dtype = torch.bfloat16
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)
    return model


@contextmanager
def fake_device(model: nn.Module, device: str) -> Iterator[LiveBytes]:
    """Put a model without memory on a device that need not be there, and count what lives on it.

    PyTorch's fake tensors know one thread only, so that a step isn't computed in two halves meanwhile.
    """
    if device.startswith("cuda"):
        _pretend_a_cuda_guard()
    live = LiveBytes(torch.device(device))
    with torch_threads(1), FakeTensorMode(allow_non_fake_inputs=True), live:
        _place(model, device)
        yield live


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that live on a device: `now`, and at most (`peak`)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device.type:
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)


def _place(model: nn.Module, device: str) -> None:
    """Give every weight a fake tensor on the device; weights that are shared stay so."""
    placed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in placed:
                    placed[id(parameter)] = _placed(parameter, device)
                module._parameters[name] = placed[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def _placed(parameter: nn.Parameter, device: str) -> nn.Parameter:
    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    made: Any = nn.Parameter(empty, parameter.requires_grad)
    if state := getattr(parameter, "quant_state", None):
        for each in (state, state.state2):
            each.absmax = torch.empty(each.absmax.shape, dtype=each.absmax.dtype, device=device)
            each.code = torch.empty(each.code.shape, device=device)
        state.offset = torch.empty((), device=device)
        made.quant_state = state
    return made  # type: ignore[no-any-return]


def _pretend_a_cuda_guard() -> None:
    """Let autograd note which device a fake CUDA tensor lies on, in a build of torch that knows no CUDA.

    Such a build has no guard for CUDA devices and aborts the process when it looks for one. The guard of the
    meta device, which does nothing, takes the empty place.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * _TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if not guards[_CUDA]:
        guards[_CUDA] = guards[_META]
