"""The size of a prompt's pieces follows what steps, rows and tokens cost."""

import random
from collections.abc import Callable

import pytest

from bot.serving.engine.prompt_pieces import STRETCH, PieceSize

Law = Callable[[int, int], float]


def law(step_s: float, row_s: float, token_s: float) -> Law:
    """A step's seconds by its rows and the tokens that it reads."""
    return lambda rows, tokens: step_s + row_s * rows + token_s * tokens


# SmolLM2-135M on one core with AVX512-VNNI: steps of 1 and 16 rows take 11 and 58 ms.
VNNI = law(0.0075, 0.0032, 0.0016)


def settled(takes: Law, *, least: int = 4, most: int = 64) -> int:
    """Read pieces beside four rows until their size stays."""
    pieces = PieceSize(least, most)
    for step in range(60):
        tokens = pieces.beside(4) if step % 4 else 0
        pieces.saw(4, tokens, takes(4, tokens))
    return pieces.beside(4)


def burst(pieces: PieceSize, takes: Law, *, prompts: int, tokens: int, noise: float = 0.0) -> list[float]:
    """Read prompts that come at once, one after the other, each decoded from then on.

    Returns of each step beside somebody how many times it took as long as without a piece.
    """
    dice = random.Random(5)
    pieces.saw(0, 256, takes(0, 256))
    stretches = []
    for rows in range(1, prompts):
        left = tokens
        while left:
            read = min(left, pieces.beside(rows))
            slowed = (1 + abs(dice.gauss(0, noise))) * (10 if noise and dice.random() < 0.03 else 1)
            pieces.saw(rows, read, takes(rows, read) * slowed)
            stretches.append(takes(rows, read) / takes(rows, 0))
            left -= read
    return stretches


@pytest.mark.parametrize("step_s", [0.03, 0.06, 0.2])
def test_a_step_that_reads_a_piece_takes_hardly_twice_as_long_as_one_that_reads_none(step_s: float) -> None:
    takes = law(step_s / 2, step_s / 8, 0.004)
    tokens = settled(takes)
    assert takes(4, tokens) <= STRETCH * step_s
    assert tokens in (64, int((STRETCH - 1) * step_s / 0.004), int((STRETCH - 1) * step_s / 0.004) - 1)


def test_a_piece_has_a_least_and_a_greatest_size() -> None:
    assert settled(law(0.001, 0.0, 0.01)) == 4
    assert settled(law(1.0, 0.0, 0.001)) == 64
    assert settled(law(0.001, 0.0, 0.01), least=16, most=8) == 8


def test_where_nothing_was_seen_a_piece_begins_small_and_grows_by_halves() -> None:
    pieces = PieceSize(8, 64)
    sizes = []
    for _ in range(8):
        sizes.append(pieces.beside(3))
        pieces.saw(3, sizes[-1], 1.0)
    assert sizes == [8, 12, 18, 27, 40, 60, 64, 64]


def test_steps_that_all_read_tell_what_a_step_a_row_and_a_token_cost() -> None:
    """Where sixteen requests come at once, no step is without a piece.

    Step and token were once estimated apart: then 353 steps, and a first one of 11 times its length.
    """
    pieces = PieceSize(8, 64)
    stretches = burst(pieces, VNNI, prompts=16, tokens=256)
    assert len(stretches) < 300
    # Eight tokens beside one row are the least.
    assert max(stretches) == pytest.approx(VNNI(1, 8) / VNNI(1, 0))
    for rows in (1, 4, 16):
        foreseen = max(8, int((STRETCH - 1) * VNNI(rows, 0) / 0.0016))
        assert pieces.beside(rows) in (foreseen, foreseen - 1)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_a_shared_machines_clocks_hardly_change_the_sizes(noise: float) -> None:
    stretches = burst(PieceSize(8, 64), VNNI, prompts=16, tokens=256, noise=noise)
    assert 230 < len(stretches) < 350
    assert max(stretches) < 4
    assert sum(stretches) / len(stretches) < 2


def test_more_rows_have_longer_steps_and_so_larger_pieces() -> None:
    pieces = PieceSize(2, 64)
    for rows, tokens in ((1, 0), (8, 0), (8, 16), (1, 30)) * 5:
        pieces.saw(rows, tokens, 0.01 * rows + 0.002 * tokens)
    assert pieces.beside(1) in (3, 4)
    assert pieces.beside(8) in (31, 32)


def test_a_prompt_that_is_read_alone_is_a_first_guess_and_no_more() -> None:
    pieces = PieceSize(2, 64)
    pieces.saw(0, 500, 1.0)
    for _ in range(9):
        pieces.saw(3, 0, 0.04)
        pieces.saw(3, 16, 0.04 + 16 * 0.002)
    assert pieces.beside(3) in (15, 16)
    pieces.saw(0, 500, 100.0)
    assert pieces.beside(3) in (15, 16)


def test_one_slow_step_changes_little() -> None:
    pieces = PieceSize(2, 64)
    for _ in range(9):
        pieces.saw(4, 0, 0.04)
        pieces.saw(4, 16, 0.072)
    before = pieces.beside(4)
    pieces.saw(4, 16, 2.0)
    assert abs(pieces.beside(4) - before) <= 2
    pieces.saw(4, 0, 2.0)
    assert abs(pieces.beside(4) - before) <= 3


def test_a_machine_that_becomes_slower_gets_smaller_pieces_within_thirty_steps() -> None:
    pieces = PieceSize(2, 64)
    for token_s, expected in ((0.002, (15, 16)), (0.004, (8, 9))):
        for _ in range(15):
            pieces.saw(4, 0, 0.04)
            pieces.saw(4, 12, 0.04 + 12 * token_s)
        assert pieces.beside(4) in expected


def test_no_cost_becomes_negative() -> None:
    pieces = PieceSize(4, 64)
    for tokens in (40, 30, 20, 10, 40, 30):
        pieces.saw(2, tokens, 0.05 - 0.001 * tokens)
        assert min(pieces._time.costs) >= 0
    assert pieces.beside(2) <= 64
