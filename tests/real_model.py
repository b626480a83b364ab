"""Where tests keep the real 135M model in its 4-bit form."""

from pathlib import Path

# Outside the tests' temporary folders on purpose: quantizing takes half a minute; only the first run pays it.
REAL_MODELS_DIR = Path(__file__).resolve().parents[1] / "build" / "models"
