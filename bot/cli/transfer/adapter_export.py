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
FORMATS = ("peft", "gguf")
_LIBRARIES = {"peft": "peft", "gguf": "gguf", "merged": "transformers"}


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
    form: Annotated[
        str, typer.Option("--format", help="peft, or gguf: a LoRA file for llama.cpp.", metavar="FORMAT")
    ] = FORMATS[0],
) -> None:
    """Write an adapter as a PEFT folder, or with --merged as a whole model, with a card.

    The folder loads with `PeftModel.from_pretrained` on the same base, a GGUF file with llama.cpp (`--lora`)
    beside a GGUF file of that base. The merged model holds the base as it
    serves here, its 4-bit values unfolded. Nothing of what members wrote is in either, but a model may repeat
    what it learned: give it away as you would give away the conversations.

    Examples:

        strop adapters export a3f9c2d1

        strop adapters export a3f9c2d1 ./my-model --merged --dtype float32

        strop adapters export a3f9c2d1 --format gguf
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype is {' or '.join(DTYPES)}, not {dtype!r}.")
    if form not in FORMATS:
        raise UsageError(f"--format is {' or '.join(FORMATS)}, not {form!r}.")
    if merged and form == "gguf":
        raise UsageError("--merged writes a whole model and --format gguf an adapter alone: choose one.")
    kind = "merged" if merged else form
    with session(config) as opened:
        found = opened.database.read(lambda db: find(db, adapter, scope))
        if found.state == "tainted":
            raise CommandError(str(tainted(found.id)))
        out = (folder or Path(found.id if kind == "peft" else f"{found.id}-{kind}")).expanduser().absolute()
        if out.exists():
            raise CommandError(f"{out} is there already: name a new folder.")
        source = opened.config.adapters / found.id
        adapter_files.verify(source, adapters_dir=opened.config.adapters, base_hash=found.base_hash)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=_parent(out)) as outer:
            work = Path(outer) / "written"
            work.mkdir(mode=0o755)
            base_id = str(json.loads((source / CONFIG).read_text("utf-8")).get("base_model_name_or_path"))
            if kind != "peft":
                _convert(_base_folder(opened, found), source, work, kind, dtype)
            else:
                for name in (CONFIG, WEIGHTS):
                    shutil.copyfile(source / name, work / name)
            (work / CARD).write_text(card(found, base_id, kind), encoding="utf-8")
            work.rename(out)
        detail = {"adapter_id": found.id, "scope": found.scope, "merged": merged, "format": kind}
        opened.database.write(lambda db: audit.record(db, actor(), "adapter.export", detail))
    typer.echo(f"{'The whole model' if merged else f'Adapter {found.id}'} is in {out}.")


def card(adapter: Adapter, base_id: str, kind: str) -> str:
    """The model card, with the header that hubs read; `kind` is peft, gguf or merged."""
    known = catalogue.find(base_id)
    licence = known.licence if known else ""
    header = [f"base_model: {base_id}"]
    header += [f"license: {licence.lower()}"] if licence else []
    header += [f"library_name: {_LIBRARIES[kind]}", "pipeline_tag: text-generation"]
    origin = "a rehearsal's simulated members" if adapter.rehearsal else "a community's members"
    whole = f"{base_id} with adapter {adapter.id} merged in"
    what = whole if kind == "merged" else f"A LoRA adapter for {base_id}"
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


def _convert(base: Path, adapter: Path, out: Path, kind: str, dtype: str) -> None:
    """Let the trainer's own program write it: the command line loads no model."""
    command = [sys.executable, "-m", "trainer.export", "--base", str(base), "--adapter", str(adapter)]
    ended = subprocess.run(
        [*command, "--out", str(out), "--format", kind, "--dtype", dtype],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        raise CommandError(lines[-1] if lines else "It could not be written.")


def register(_: typer.Typer) -> None:
    """Add this topic's command."""
    group.command("export")(export_adapter)
