"""Who is served when: the waiting room alone, and a community of hundreds in simulated time."""

import functools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.serving.engine.scheduler import QueueLimits, RequestQueue
from bot.serving.errors import ServerBusyError
from bot.serving.protocol import PRIORITY_BACKGROUND, QueueState
from tests.bot.serving.engine.queue_model import QueueModel, Reply, draw, latencies, percentile

MEMBERS = 200
SPAM = 200
# Replies a second that eight rows of the simulated model serve.
CAPACITY = 0.76
BOUNDLESS = QueueLimits(people=1000, per_user=1000)


class Lot:
    """Rows without a cache behind them."""

    def __init__(self) -> None:
        self.jobs: list[Reply] = []

    def leave(self, job: Reply) -> None:
        self.jobs.remove(job)


def admit(waiting: RequestQueue[Reply], people: Lot, background: Lot) -> None:
    waiting.admit(
        people,
        background,
        join=lambda job: (background if job.priority else people).jobs.append(job),
        leave=lambda job: (background if job.priority else people).jobs.remove(job),
    )


def asked(user: str, length: int = 10, **changes: Any) -> Reply:
    return Reply(user, length, 10, 0.0, **changes)


def room(slots: int = 2, **limits: int) -> tuple[RequestQueue[Reply], Lot, Lot]:
    return RequestQueue(slots, QueueLimits(**limits), lambda: 0.0), Lot(), Lot()


def users(jobs: list[Reply]) -> list[str]:
    return [job.user for job in jobs]


def test_users_take_turns() -> None:
    waiting, people, background = room(slots=1)
    for user in "aaabbc":
        waiting.add(asked(user), people)
    served = []
    while len(waiting):
        admit(waiting, people, background)
        served.append(people.jobs[0].user)
        people.leave(people.jobs[0])
    assert served == list("abcaba")


def test_whoever_holds_fewest_rows_comes_first() -> None:
    waiting, people, background = room(slots=3)
    for user in "aabb":
        waiting.add(asked(user), people)
    admit(waiting, people, background)
    for user in "ab":
        waiting.add(asked(user), people)
    people.leave(people.jobs[users(people.jobs).index("b")])
    admit(waiting, people, background)
    assert Counter(users(people.jobs)) == {"a": 2, "b": 1}


def test_a_hogs_shortest_reply_steps_aside_for_somebody_else() -> None:
    waiting, people, background = room(slots=3)
    hogs = [asked("hog") for _ in range(3)]
    for place, job in enumerate(hogs):
        waiting.add(job, people)
        job.tokens = [0] * (3 - place)
    admit(waiting, people, background)
    for _ in range(2):
        waiting.add(asked("guest"), people)
    admit(waiting, people, background)
    assert Counter(users(people.jobs)) == {"hog": 2, "guest": 1}
    assert [job.times_aside for job in hogs] == [0, 0, 1]
    # Shares that differ by one stay as they are.
    admit(waiting, people, background)
    assert Counter(users(people.jobs)) == {"hog": 2, "guest": 1}


def test_a_hog_is_cut_to_an_equal_share_once_somebody_else_comes() -> None:
    waiting, people, background = room(slots=6)
    for _ in range(6):
        waiting.add(asked("hog"), people)
    admit(waiting, people, background)
    for _ in range(4):
        waiting.add(asked("guest"), people)
    admit(waiting, people, background)
    assert Counter(users(people.jobs)) == {"hog": 3, "guest": 3}


def test_nobody_holds_more_rows_than_somebody_else_could_fill() -> None:
    waiting, people, background = room(slots=6)
    for _ in range(6):
        waiting.add(asked("hog"), people)
    admit(waiting, people, background)
    waiting.add(asked("guest"), people)
    admit(waiting, people, background)
    assert Counter(users(people.jobs)) == {"hog": 1, "guest": 1}
    people.leave(people.jobs[users(people.jobs).index("guest")])
    admit(waiting, people, background)
    assert Counter(users(people.jobs)) == {"hog": 6}


def test_nobody_steps_aside_for_their_own() -> None:
    waiting, people, background = room(slots=2)
    for _ in range(5):
        waiting.add(asked("a"), people)
        admit(waiting, people, background)
    assert not any(job.times_aside for job in people.jobs)


def test_background_work_gives_way_and_comes_back_first() -> None:
    waiting, people, background = room(slots=2)
    for _ in range(3):
        waiting.add(asked("", priority=PRIORITY_BACKGROUND), people)
    admit(waiting, people, background)
    second = background.jobs[1]
    waiting.add(asked("a"), people)
    admit(waiting, people, background)
    assert (len(people.jobs), len(background.jobs), second.times_aside) == (1, 1, 1)
    people.leave(people.jobs[0])
    admit(waiting, people, background)
    assert background.jobs[1] is second


def test_one_users_requests_fill_no_queue() -> None:
    waiting, people, background = room(slots=1, per_user=3)
    for _ in range(4):
        waiting.add(asked("spammer"), people)
        admit(waiting, people, background)
    with pytest.raises(ServerBusyError, match="3 requests of yours are waiting") as busy:
        waiting.add(asked("spammer"), people)
    assert busy.value.retry_after_s == 5.0
    waiting.add(asked("guest"), people)
    assert waiting.state(people) == QueueState(people=4, users=2, wait_s=10.0)


def test_callers_without_a_name_are_bounded_together() -> None:
    waiting, people, _ = room(unnamed=2)
    for _ in range(2):
        waiting.add(asked(""), people)
    with pytest.raises(ServerBusyError):
        waiting.add(asked(""), people)


def test_refused_callers_are_told_different_times() -> None:
    waiting, people, background = room(slots=1, people=2)
    for user in "abc":
        waiting.add(asked(user), people)
        admit(waiting, people, background)
    told = []
    for user in "defgh":
        with pytest.raises(ServerBusyError) as busy:
            waiting.add(asked(user), people)
        told.append(busy.value.retry_after_s)
    # One row that each reply holds for five seconds; all who wait are served within fifteen.
    assert told == [5.0, 10.0, 15.0, 15.0, 15.0]


def test_a_free_row_means_no_wait() -> None:
    waiting, people, background = room(slots=2)
    assert waiting.state(people) == QueueState()
    first, second, third = (asked(user) for user in "abc")
    for job in (first, second):
        waiting.add(job, people)
    admit(waiting, people, background)
    waiting.add(third, people)
    waiting.add(asked("c"), people)
    assert waiting.place(first, people) is None
    place = waiting.place(third, people)
    assert place is not None
    assert (place.ahead, place.wait_s) == (0, 2.5)
    assert waiting.state(people).wait_s == 5.0


operations = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(["", "a", "b", "c", "d"]), st.sampled_from([0, 0, 0, 1])),
        st.tuples(st.sampled_from(["cancel", "end"]), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("admit"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(operations, st.integers(1, 5))
def test_every_request_is_in_exactly_one_place(plan: list[Any], slots: int) -> None:
    waiting, people, background = room(slots, people=6, background=4, per_user=3, unnamed=4)
    accepted, gone = [], []
    for kind, value, priority in plan:
        if kind == "ask":
            job = asked(value, priority=priority)
            try:
                waiting.add(job, people)
                accepted.append(job)
            except ServerBusyError as busy:
                assert busy.retry_after_s >= 1
        elif kind == "cancel" and accepted:
            accepted[value % len(accepted)].cancelled = True
            gone += waiting.remove_ended(0.0)
        elif kind == "end" and people.jobs:
            job = people.jobs[value % len(people.jobs)]
            people.leave(job)
            gone.append(job)
        else:
            admit(waiting, people, background)
            free = slots - len(people.jobs) - len(background.jobs)
            assert free >= 0
            assert free == 0 or not any(job.priority for job in waiting)
        places = [*waiting, *people.jobs, *background.jobs, *gone]
        assert sorted(map(id, places)) == sorted(map(id, accepted))
        order = [waiting.place(job, people) for job in waiting if not job.priority]
        assert sorted(place.ahead for place in order if place) == list(range(len(order)))


def community(limits: QueueLimits, *, load: float, spam: bool = False, seconds: float = 700.0) -> QueueModel:
    """Two hundred members ask now and then; a spammer keeps two hundred requests in or before the queue."""
    random_ = random.Random(7)
    model = QueueModel(slots=8, limits=limits)
    moment = 0.0
    while moment < seconds:
        moment += random_.expovariate(load * CAPACITY)
        reply = draw(random_, f"member {random_.randrange(MEMBERS)}", moment)
        model.at(moment, functools.partial(model.submit_patiently, reply))
    if spam:

        def again(ended: Reply) -> None:
            if ended.user == "spammer":
                model.submit_patiently(draw(random_, "spammer", model.now))

        model.on_end = again
        for _ in range(SPAM):
            model.at(0.0, lambda: model.submit_patiently(draw(random_, "spammer", 0.0)))
    model.run(seconds)
    return model


def members_p95(model: QueueModel, until: float = 600.0) -> float:
    return percentile(
        latencies(reply for reply in model.ended if reply.user != "spammer" and reply.asked_at < until), 0.95
    )


@pytest.mark.parametrize("limits", [QueueLimits(), BOUNDLESS], ids=["as served", "without bounds"])
@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_a_spammer_slows_members_by_less_than_twofold(limits: QueueLimits, load: float) -> None:
    calm, spammed = (community(limits, load=load, spam=spam) for spam in (False, True))
    slower = members_p95(spammed) / members_p95(calm)
    print(f"load {load}: p95 {members_p95(calm):.1f} s, beside a spammer {slower:.2f} times that")
    assert slower < 2
    # The spammer gets what is left, and no member waits for ever.
    assert len(latencies(spammed.ended, "spammer")) > 10


def test_what_people_are_told_is_about_what_they_wait() -> None:
    """A load that the rows can't carry: the queue is full most of the time."""
    model = community(QueueLimits(), load=1.3)
    told = [
        (reply.row_at - reply.queued_at) / reply.first_told.wait_s
        for reply in model.ended
        if reply.row_at is not None and reply.first_told is not None and reply.first_told.ahead > 4
    ]
    told.sort()
    print(f"{len(told)} waits, actual/told: {[round(percentile(told, q), 2) for q in (0.1, 0.5, 0.9)]}")
    assert len(told) > 300
    assert 0.67 < percentile(told, 0.5) < 1.5
    assert percentile(told, 0.1) > 0.33
    assert percentile(told, 0.9) < 3
    came_back = [reply.tries - 1 for reply in model.ended if reply.tries > 1]
    at_once = sum(tries == 1 for tries in came_back) / len(came_back)
    print(f"{len(came_back)} came back when they were told to; {at_once:.0%} of them found a place at once")
    assert len(came_back) > 30
    assert at_once > 0.4


def crowd_p95(spam: int) -> float:
    """Two hundred members ask in the same moment, when ``spam`` requests of one user wait already."""
    random_ = random.Random(3)
    model = QueueModel(slots=8, limits=BOUNDLESS)
    crowd = [draw(random_, f"member {number}", 1.0) for number in range(MEMBERS)]
    for _ in range(spam):
        model.submit(draw(random_, "spammer", 0.0))
    for reply in crowd:
        model.at(1.0, functools.partial(model.submit, reply))
    model.run(3600.0)
    return percentile(latencies(crowd), 0.95)


def test_a_spammer_who_comes_first_delays_a_crowd_by_little() -> None:
    calm, spammed = crowd_p95(0), crowd_p95(SPAM)
    print(f"a crowd at once: p95 {calm:.0f} s, behind a spammer {spammed / calm:.2f} times that")
    assert spammed / calm < 1.3
