"""The number of threads follows what steps take."""

from collections.abc import Callable

from bot.serving.native.thread_choice import TRY_EVERY, ThreadChoice, fastest_threads

Cost = Callable[[int], float]


def run(choice: ThreadChoice, tokens: int, steps: int, cost: Cost) -> list[int]:
    """Return the numbers of threads of so many steps, each of which takes ``cost`` of it."""
    seen = []
    for _ in range(steps):
        threads = choice.next(tokens)
        choice.took(tokens, threads, cost(threads))
        seen.append(threads)
    return seen


def shared(threads: int) -> float:
    """A step that every thread makes shorter."""
    return 0.1 / threads


def contended(threads: int) -> float:
    """A step that every thread makes longer, since it waits for a core."""
    return 0.1 * threads


def test_the_fastest_number_is_taken_unless_fewer_are_nearly_as_fast() -> None:
    seconds = {1: 1.0, 2: 0.5, 4: 0.49}
    assert fastest_threads(seconds.__getitem__, 4) == 2
    assert fastest_threads(seconds.__getitem__, 7) == 2
    assert fastest_threads(seconds.__getitem__, 1) == 1


def test_steps_of_many_tokens_may_have_more_threads_than_those_of_one() -> None:
    choice = ThreadChoice({1: 1, 8: 2}, 2)
    assert [choice.next(tokens) for tokens in (1, 7, 8, 300)] == [1, 1, 2, 2]
    assert choice.for_most_tokens == 2


def test_a_busy_core_ends_a_thread_and_an_idle_one_brings_it_back() -> None:
    choice = ThreadChoice({1: 2}, 2)
    calm = run(choice, 1, 10 * TRY_EVERY, shared)
    assert calm.count(1) <= 10  # now and then one thread is tried
    busy = run(choice, 1, 2 * TRY_EVERY, contended)
    assert busy[-3:] == [1, 1, 1]
    assert run(choice, 1, 3 * TRY_EVERY, shared)[-3:] == [2, 2, 2]


def test_a_single_slow_step_changes_nothing() -> None:
    choice = ThreadChoice({1: 2}, 2)
    slow = iter([0.1] * 40 + [9.0] + [0.05] * 1000)
    assert run(choice, 1, 500, lambda threads: 0.1 if threads == 1 else next(slow))[-1] == 2


def test_each_size_of_a_step_is_judged_by_itself() -> None:
    choice = ThreadChoice({1: 2}, 2)
    run(choice, 1, 2 * TRY_EVERY, contended)
    assert choice.next(1) == 1
    assert run(choice, 256, 2 * TRY_EVERY, shared)[-1] == 2


def test_of_many_cores_as_many_are_used_as_pay() -> None:
    choice = ThreadChoice({1: 1}, 16)
    assert run(choice, 1, 12 * TRY_EVERY, lambda threads: 0.1 / min(threads, 8))[-1] == 8


def test_a_single_core_has_no_other_number_to_try() -> None:
    choice = ThreadChoice({1: 1, 8: 1}, 1)
    assert set(run(choice, 9, 3 * TRY_EVERY, shared)) == {1}
