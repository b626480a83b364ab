"""`python -m trainer.report [--config PATH] [--run ID] [--out FILE]`: write a run's report as one page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from storage.config import load_config
from storage.db.database import Database
from storage.errors import ConfigError, StorageError
from trainer.report import page, source

EXIT_CONFIGURATION = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, print its path and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.report", description=__doc__)
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--run", default="", help="a run's id or its beginning (default: the newest)")
    parser.add_argument("--out", type=Path, default=None, help="default: report.html in the run's folder")
    parser.add_argument("--stdout", action="store_true", help="print the page itself")
    parsed = parser.parse_args(arguments)
    try:
        config = load_config(parsed.config, os.environ)
        with Database.open(config.database) as database:
            found = source.read(database, config, parsed.run)
    except (ConfigError, StorageError) as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION if isinstance(error, ConfigError) else 1
    text = page.render(found)
    if parsed.stdout:
        sys.stdout.write(text)
        return 0
    out: Path = parsed.out or source.folder_of(config, found.run) / "report.html"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"The report can't be written to {out}: {error.strerror}.", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
