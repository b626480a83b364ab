"""`python -m bot.cli`: the same as the command `strop`."""

from __future__ import annotations

from bot.cli import main

if __name__ == "__main__":
    main()
