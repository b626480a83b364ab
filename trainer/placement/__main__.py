"""`python -m trainer.placement FOLDER --models DIR`: carry out the training of a folder, in this process.

It reads the folder's request and data, and needs neither a database nor a model server. Progress goes to
standard output, a JSON object a line. It may be killed at any time and started again: it goes on from its
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from storage.process import logs
from storage.sentences import Sentence
from trainer.errors import RequestError
from trainer.placement.carry_out import carry_out

EXIT_FAILED = 1
# The training asks for ranked replies: put them into the folder and start it again.
EXIT_ASKS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one training; return 0 where its adapter is complete, 3 where it asks, 1 where it failed."""
    parser = argparse.ArgumentParser(prog="python -m trainer.placement", description=__doc__)
    parser.add_argument("folder", type=Path, help="the training's folder")
    parser.add_argument("--models", type=Path, required=True, help="the folder of this place's bases")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parsed = parser.parse_args(arguments)
    for path in (parsed.folder, parsed.models):
        if not path.is_dir():
            parser.error(f"{path} is not a folder.")
    logs.configure("trainer.placement")
    try:
        ended = carry_out(parsed.folder, parsed.models, device=parsed.device, on_progress=_tell)
    except RequestError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(f"{error.filename} can't be read or written: {error.strerror}.", file=sys.stderr)
        return EXIT_FAILED
    if ended.error:
        print(ended.error, file=sys.stderr)
    return {"trained": 0, "asks": EXIT_ASKS, "failed": EXIT_FAILED}[ended.state]


def _tell(share: float, note: Sentence) -> None:
    print(json.dumps({"progress": round(share, 4), "note": note.as_json()}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
