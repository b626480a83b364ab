"""The kernels on aarch64: cross-compiled and emulated (make test-aarch64)."""

import subprocess
from pathlib import Path

import pytest

from bot.serving.native.library import OPTIMISE, SOURCE

CHECK = Path(__file__).with_name("check_products.c")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
# Of the largest output: sums of up to 1,536 products in float32.
TOLERANCE = 1e-5

pytestmark = pytest.mark.aarch64


def test_products_agree_with_float64(tmp_path: Path) -> None:
    program = tmp_path / "check"
    flags = ("-std=gnu11", *OPTIMISE, "-mcpu=neoverse-n1", "-static", "-w", f"-I{SOURCE.parent}")
    subprocess.run((COMPILER, *flags, "-o", program, CHECK, "-lm"), check=True, timeout=240)
    ran = subprocess.run((EMULATOR, program), check=True, capture_output=True, text=True, timeout=240)
    assert 0.0 < float(ran.stdout) < TOLERANCE
