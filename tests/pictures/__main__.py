"""The documents' pictures, made anew: `python -m tests.pictures [operators|playground]` (make pictures)."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.pictures import operators, playground

PICTURES = {"operators": operators.take, "playground": playground.take}


def main() -> None:
    """Take the pictures that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - PICTURES.keys():
        parser.error(f"there are no pictures {', '.join(sorted(unknown))}")
    for name in names:
        asyncio.run(PICTURES[name]())


if __name__ == "__main__":
    sys.exit(main())
