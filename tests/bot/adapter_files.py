"""Three adapters whose files are really there and verify, though their weights are only bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bot.serving.model import adapter_files
from tests.bot.fake_server import BASE_HASH

TEMPLATE_HASH = "c" * 64


def _write(folder: Path, weights: bytes) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / adapter_files.CONFIG).write_text('{"r": 16}')
    (folder / adapter_files.WEIGHTS).write_bytes(weights)
    return adapter_files.write_manifest(
        folder, base_hash=BASE_HASH, chat_template_hash=TEMPLATE_HASH, extra={}
    )


def _id_of(weights: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _write(Path(folder), weights)


# An adapter's id is a hash of its files.
WEIGHTS = {_id_of(weights): weights for weights in (b"first", b"second", b"third")}
FIRST, SECOND, THIRD = WEIGHTS


def lay(adapters_dir: Path, *adapter_ids: str) -> None:
    """Put the files of these adapters where a trainer would; of an id that isn't one of the three, none."""
    for adapter_id in adapter_ids:
        if adapter_id in WEIGHTS:
            assert _write(adapters_dir / adapter_id, WEIGHTS[adapter_id]) == adapter_id
