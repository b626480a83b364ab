from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.serving.timing import Timing, quantile, ratio_of_pairs, take_turns, timing_from_json


def timing(streams: int = 2, decode_s: float = 2.0) -> Timing:
    return Timing(
        streams=streams,
        whole_tokens=40,
        whole_cpu_s=10.0,
        whole_wall_s=20.0,
        decode_tokens=30,
        decode_cpu_s=decode_s,
        decode_wall_s=2 * decode_s,
    )


def test_rates_are_tokens_by_the_seconds_of_the_chosen_clock() -> None:
    assert timing().decode_rate() == 15.0
    assert timing().decode_rate("wall") == 7.5
    assert timing().whole_rate() == 4.0
    assert timing().whole_rate("wall") == 2.0


def test_the_ratio_is_the_median_of_the_turns_and_not_the_ratio_of_medians() -> None:
    ratio = ratio_of_pairs([10.0, 1.0, 4.0], [1.0, 2.0, 2.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 0.5, 10.0)


def test_turns_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_of_pairs([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no pairs"):
        ratio_of_pairs([], [])


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_enough_of_them_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_the_99th_percentile_of_a_hundred_is_the_second_largest() -> None:
    assert quantile([float(n) for n in range(100)], 0.99) == 98.0


class Recorder:
    """A side that notes when it was its turn."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def run(self, prompts: list[list[int]], tokens: int) -> Timing:
        self._log.append(f"{self.name}{prompts[0][0]}")
        return timing(len(prompts), float(tokens))

    def close(self) -> None:
        pass


def test_every_side_works_on_every_turn_and_another_one_begins_each_time() -> None:
    log: list[str] = []
    sides = [Recorder("a", log), Recorder("b", log)]
    taken = take_turns(sides, [[[1]], [[2]], [[3]]], 7)
    assert log == ["a1", "b1", "b2", "a2", "a3", "b3"]
    assert [len(timings) for timings in taken.values()] == [3, 3]
    assert taken["b"][0].decode_cpu_s == 7.0


def test_a_timing_of_another_shape_is_refused() -> None:
    with pytest.raises(TypeError):
        timing_from_json({"streams": 1})


def test_the_pure_parts_load_without_a_model_library(tmp_path: Path) -> None:
    import subprocess
    import sys

    names = "timing, results, report, picture, peer, countdown, memory_use"
    probe = (
        f"import sys; from tests.bench.serving import {names.replace('countdown, ', '')}; "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[4]
    assert subprocess.run([sys.executable, "-c", probe], cwd=root, timeout=60).returncode == 0
