"""One run as a page that stands alone: `python -m trainer.report`, behind `strop report`. Needs no torch."""
