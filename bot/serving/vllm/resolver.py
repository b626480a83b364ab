"""Hand vLLM the adapters of the adapters folder by their ids, once they are proven to be what they say.

vLLM asks its resolvers when a request names a model that it doesn't know. The answer here is a folder
`<adapters>/<id>` whose manifest, files and base were checked; no load call is needed, so that any number of
replicas on one shared folder serve the same adapters. An id is the hash of the adapter's manifest: it never
means anything else, which vLLM's prefix cache relies on.

This module runs inside vLLM's own environment, where Strop is installed without its dependencies: it imports
nothing but the standard library, vLLM, and modules of ours that do the same. vLLM finds it by the entry point
`strop_resolver` in the group `vllm.general_plugins`; what it needs to know is in the environment.

Source of the interface: vllm/lora/resolver.py of vLLM 0.32.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bot.serving.errors import AdapterRefusedError
from bot.serving.model.adapter_files import verify

# The entry point's name, by which vLLM is told to load it and no other plugin.
PLUGIN = "strop_resolver"
ADAPTERS_DIR = "STROP_ADAPTERS_DIR"
BASE_HASH = "STROP_BASE_HASH"
CHAT_TEMPLATE_HASH = "STROP_CHAT_TEMPLATE_HASH"

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
# vLLM shows its own loggers only.
log = logging.getLogger("vllm.strop_resolver")


@dataclass(frozen=True)
class AdapterFolder:
    """The adapters that may be served, and the base that they have to belong to."""

    adapters_dir: Path
    base_hash: str
    chat_template_hash: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> AdapterFolder:
        """Read what the process that started vLLM wrote.

        Raises:
            KeyError: it wrote nothing.
        """
        return cls(Path(environment[ADAPTERS_DIR]), environment[BASE_HASH], environment[CHAT_TEMPLATE_HASH])

    def find(self, name: str) -> Path | None:
        """Return an adapter's folder, or None where there is none of this name or it fails a check."""
        folder = self.adapters_dir / name
        if not _ID.fullmatch(name) or not folder.is_dir():
            return None
        try:
            manifest = verify(
                folder,
                adapters_dir=self.adapters_dir,
                base_hash=self.base_hash,
                chat_template_hash=self.chat_template_hash,
            )
        except AdapterRefusedError as error:
            log.warning("adapter refused: %s", error)
            return None
        return manifest.folder


def register() -> None:
    """Register the resolver with vLLM; the entry point. vLLM may call it in several processes."""
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class StropResolver(LoRAResolver):  # type: ignore[misc]
        """vLLM's interface over :class:`AdapterFolder`."""

        def __init__(self, adapters: AdapterFolder) -> None:
            self._adapters = adapters

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            """Return the adapter of this name; vLLM gives it its number."""
            folder = self._adapters.find(lora_name)
            if folder is None:
                return None
            return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))

    try:
        adapters = AdapterFolder.from_environment(os.environ)
    except KeyError:
        log.info("not started by Strop: no adapters are resolved")
        return
    LoRAResolverRegistry.register_resolver("strop", StropResolver(adapters))
