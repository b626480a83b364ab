"""`strop adapters export`: an adapter, or a whole model with it merged in, for use elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.adapters import find, group
from bot.cli.errors import CommandError, UsageError
from bot.cli.runs import actor
from bot.cli.session import ConfigOption, ScopeOption, Session, session
from bot.serving.model import adapter_files, catalogue
from bot.serving.model.adapter_files import CONFIG, WEIGHTS
from storage.admin import audit
from storage.learning.adapters import Adapter, tainted

CARD = "README.md"
DTYPES = ("bfloat16", "float32")


def export_adapter(
    adapter: Annotated[str, typer.Argument(help="An adapter's id (its beginning is enough).")],
    folder: Annotated[
        Path | None, typer.Argument(help="Where to write it.", show_default="a folder of its name")
    ] = None,
    config: ConfigOption = None,
    scope: ScopeOption = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the whole model, the adapter merged into its base.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", help=f"With --merged: {' or '.join(DTYPES)}.")] = DTYPES[0],
) -> None:
    """Write an adapter as a PEFT folder, or with --merged as a whole model, with a card.

    The folder loads with `PeftModel.from_pretrained` on the same base. The merged model holds the base as it
    serves here, its 4-bit values unfolded. Nothing of what members wrote is in either, but a model may repeat
    what it learned: give it away as you would give away the conversations.

    Examples:

        strop adapters export a3f9c2d1

        strop adapters export a3f9c2d1 ./my-model --merged --dtype float32
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype is {' or '.join(DTYPES)}, not {dtype!r}.")
    with session(config) as opened:
        found = opened.database.read(lambda db: find(db, adapter, scope))
        if found.state == "tainted":
            raise CommandError(str(tainted(found.id)))
        out = (folder or Path(f"{found.id}-merged" if merged else found.id)).expanduser().absolute()
        if out.exists():
            raise CommandError(f"{out} is there already: name a new folder.")
        source = opened.config.adapters / found.id
        adapter_files.verify(source, adapters_dir=opened.config.adapters, base_hash=found.base_hash)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=_parent(out)) as outer:
            work = Path(outer) / "written"
            work.mkdir(mode=0o755)
            base_id = str(json.loads((source / CONFIG).read_text("utf-8")).get("base_model_name_or_path"))
            if merged:
                _merge(_base_folder(opened, found), source, work, dtype)
            else:
                for name in (CONFIG, WEIGHTS):
                    shutil.copyfile(source / name, work / name)
            (work / CARD).write_text(card(found, base_id, merged=merged), encoding="utf-8")
            work.rename(out)
        detail = {"adapter_id": found.id, "scope": found.scope, "merged": merged}
        opened.database.write(lambda db: audit.record(db, actor(), "adapter.export", detail))
    typer.echo(f"{'The whole model' if merged else f'Adapter {found.id}'} is in {out}.")


def card(adapter: Adapter, base_id: str, *, merged: bool) -> str:
    """The model card, with the header that hubs read."""
    known = catalogue.find(base_id)
    licence = known.licence if known else ""
    header = [f"base_model: {base_id}"]
    header += [f"license: {licence.lower()}"] if licence else []
    header += [f"library_name: {'transformers' if merged else 'peft'}", "pipeline_tag: text-generation"]
    origin = "a rehearsal's simulated members" if adapter.rehearsal else "a community's members"
    what = f"{base_id} with adapter {adapter.id} merged in" if merged else f"A LoRA adapter for {base_id}"
    return "\n".join(
        [
            "---",
            *header,
            "---",
            "",
            f"# {what}",
            "",
            f"Trained or judged by Strop on the ratings of {origin}. It carries their habits, and the limits "
            "of its base.",
            "",
            f"- adapter: {adapter.id}",
            f"- base: {base_id} (Strop's hash of its 4-bit form: {adapter.base_hash})",
            f"- licence of the base: {licence or 'see where the base comes from'}",
            "",
        ]
    )


def _parent(out: Path) -> Path:
    if not out.parent.is_dir():
        raise CommandError(f"There is no folder {out.parent}.")
    return out.parent


def _base_folder(opened: Session, adapter: Adapter) -> Path:
    """The prepared base that the adapter belongs to, found by its hash."""
    for file in sorted(opened.config.models.glob("*/base.json")):
        try:
            if json.loads(file.read_text(encoding="utf-8")).get("hash") == adapter.base_hash:
                return file.parent
        except (OSError, ValueError, AttributeError):
            continue
    raise CommandError(
        f"The base of {adapter.id} isn't prepared on this machine: serve it once with `strop serve`."
    )


def _merge(base: Path, adapter: Path, out: Path, dtype: str) -> None:
    """Let the trainer's own program merge: the command line loads no model."""
    command = [sys.executable, "-m", "trainer.export", "--base", str(base), "--adapter", str(adapter)]
    ended = subprocess.run(
        [*command, "--out", str(out), "--dtype", dtype], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        raise CommandError(lines[-1] if lines else "The model could not be written.")


def register(_: typer.Typer) -> None:
    """Add this topic's command."""
    group.command("export")(export_adapter)
