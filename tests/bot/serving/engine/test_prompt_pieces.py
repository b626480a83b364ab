"""The size of a prompt's pieces follows what steps and tokens cost."""

import pytest

from bot.serving.engine.prompt_pieces import STRETCH, PieceSize


def settled(*, step_s: float, fixed_s: float, token_s: float, least: int = 4, most: int = 64) -> int:
    """Read pieces beside four rows until their size stays."""
    pieces = PieceSize(least, most)
    for _ in range(60):
        tokens = pieces.beside(4)
        pieces.read(tokens, fixed_s + token_s * tokens)
        pieces.decoded(4, step_s)
    return pieces.beside(4)


@pytest.mark.parametrize("step_s", [0.03, 0.06, 0.2])
def test_a_step_that_reads_a_piece_takes_hardly_twice_as_long_as_one_that_reads_none(step_s: float) -> None:
    tokens = settled(step_s=step_s, fixed_s=0.005, token_s=0.004)
    reading_s = 0.005 + 0.004 * tokens
    assert reading_s <= (STRETCH - 1) * step_s
    assert tokens == 64 or reading_s > (STRETCH - 1) * step_s - 2 * 0.004


def test_a_piece_has_a_least_and_a_greatest_size() -> None:
    assert settled(step_s=0.001, fixed_s=0.01, token_s=0.01) == 4
    assert settled(step_s=1.0, fixed_s=0.0, token_s=0.001) == 64
    assert settled(step_s=0.001, fixed_s=0.01, token_s=0.01, least=16, most=8) == 8


def test_more_rows_have_longer_steps_and_so_larger_pieces() -> None:
    pieces = PieceSize(2, 64)
    for rows in (1, 8):
        pieces.decoded(rows, 0.01 * rows)
    pieces.read(16, 0.032)
    assert (pieces.beside(1), pieces.beside(8)) == (4, 32)


def test_where_nothing_was_seen_a_piece_takes_the_greatest_size() -> None:
    pieces = PieceSize(2, 64)
    assert pieces.beside(3) == 64
    pieces.decoded(3, 0.01)
    assert pieces.beside(3) == 64


def test_a_large_piece_is_a_first_guess_and_no_more() -> None:
    pieces = PieceSize(2, 64)
    pieces.decoded(3, 0.04)
    pieces.read(500, 1.0)
    assert pieces.beside(3) == 16
    pieces.read(10, 0.02)
    pieces.read(500, 100.0)
    assert pieces.beside(3) == 16


def test_rows_that_were_never_together_count_as_the_next_fewer() -> None:
    pieces = PieceSize(2, 64)
    pieces.read(10, 0.02)
    for rows in (2, 4, 8):
        pieces.decoded(rows, 0.01 * rows)
    assert [pieces.beside(rows) for rows in (1, 3, 5, 9)] == [8, 8, 16, 32]


def test_tokens_that_ride_in_a_decode_step_cost_what_it_takes_longer() -> None:
    pieces = PieceSize(2, 64)
    pieces.decoded(4, 0.06, read=10)  # no step without them is known yet
    assert pieces.beside(4) == 64
    pieces.decoded(4, 0.04)
    pieces.decoded(4, 0.06, read=10)
    assert pieces.beside(4) == 16


def test_a_machine_that_becomes_slower_gets_smaller_pieces_within_a_few_steps() -> None:
    pieces = PieceSize(2, 64)
    pieces.decoded(4, 0.04)
    pieces.read(10, 0.02)
    assert pieces.beside(4) == 16
    for _ in range(15):
        pieces.read(10, 0.04)
    assert pieces.beside(4) in (8, 9)


def test_where_every_step_reads_more_rows_still_have_larger_pieces() -> None:
    pieces = PieceSize(4, 64)
    pieces.decoded(1, 0.01)
    pieces.read(8, 0.016)
    sizes = []
    for rows in (1, 4, 16):
        for _ in range(20):
            tokens = pieces.beside(rows)
            pieces.decoded(rows, 0.01 + 0.004 * rows + 0.002 * tokens, read=tokens)
        sizes.append(pieces.beside(rows))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 3 * sizes[0]
