"""Cron lines: what people mean by them, what is refused, and how they go with the clock's changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.cron import CronLine, time_zone
from storage.errors import CronError

# 30 November 2026 is a Monday.
MONDAY = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
ZULU = ZoneInfo("UTC")


def due(line: str, count: int = 1, start: datetime = MONDAY, zone: ZoneInfo = ZULU) -> list[str]:
    """The next times in the zone, as "Tue 12-01 04:00"."""
    found, cron = [], CronLine.parse(line)
    for _ in range(count):
        start = cron.next_after(start, zone)
        found.append(start.astimezone(zone).strftime("%a %m-%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("weekday", "days"),
    [
        ("0", ["Sun"]),
        ("7", ["Sun"]),
        ("sun", ["Sun"]),
        ("1", ["Mon"]),
        ("MON", ["Mon"]),
        ("1-5", ["Tue", "Wed", "Thu", "Fri", "Mon"]),
        ("mon-fri", ["Tue", "Wed", "Thu", "Fri", "Mon"]),
        ("6,7", ["Sat", "Sun"]),
        ("sat-sun", ["Sat", "Sun"]),
        ("5-7", ["Fri", "Sat", "Sun"]),
        ("0-6/3", ["Wed", "Sat", "Sun"]),
        ("1/2", ["Wed", "Fri", "Mon"]),
        ("*", ["Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "Mon"]),
    ],
)
def test_weekdays_are_those_of_posix(weekday: str, days: list[str]) -> None:
    assert [each[:3] for each in due(f"0 4 * * {weekday}", len(days))] == days


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("30 4 * * *", ["Tue 12-01 04:30", "Wed 12-02 04:30"]),
        ("*/20 * * * *", ["Mon 11-30 12:20", "Mon 11-30 12:40", "Mon 11-30 13:00"]),
        ("5/25 12 * * *", ["Mon 11-30 12:05", "Mon 11-30 12:30", "Mon 11-30 12:55"]),
        ("0 0 1,15 * *", ["Tue 12-01 00:00", "Tue 12-15 00:00"]),
        ("0 0 29 feb *", ["Tue 02-29 00:00"]),
        ("0 6 13 * fri", ["Fri 12-04 06:00", "Fri 12-11 06:00", "Sun 12-13 06:00"]),
        ("@weekly", ["Sun 12-06 00:00"]),
        ("@Daily", ["Tue 12-01 00:00"]),
        ("  0   4 * *   * ", ["Tue 12-01 04:00"]),
    ],
)
def test_lists_ranges_steps_names_and_nicknames(line: str, expected: list[str]) -> None:
    assert due(line, len(expected)) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 25 * * *", "'25' is no hour (it goes from 0 to 23)"),
        ("61 4 * * *", "'61' is no minute"),
        ("0 4 0 * *", "'0' is no day of the month"),
        ("0 4 * 13 *", "'13' is no month"),
        ("0 4 * * 8", "'8' is no day of the week (it goes from 0 to 7)"),
        ("0 4 * * montag", "'montag' is no day of the week"),
        ("0 4 31 2 *", "it is never due: February never has 31 days"),
        ("0 4 30 2 *", "never due"),
        ("0 4 31 2,4,jun *", "February or April or June never has 31 days"),
        ("0 22-2 * * *", "'22-2' runs backwards: write 22-23,0-2"),
        ("*/0 * * * *", "a step of 0"),
        ("0 4 * * 5L", "is no day of the week"),
        ("0 4 ? * *", "is no day of the month"),
        ("0 4 * *", "five fields"),
        ("0 0 4 * * *", "five fields"),
        ("@reboot", "five fields"),
        ("0 4,,5 * * *", "is no hour"),
        ("0 -4 * * *", "is no hour"),
        ("² 4 * * *", "is no minute"),
        ("", "five fields"),
    ],
)
def test_a_line_that_is_wrong_or_never_due_is_refused_with_the_reason(line: str, reason: str) -> None:
    with pytest.raises(CronError) as caught:
        CronLine.parse(line)
    assert reason in str(caught.value)


def test_an_impossible_day_of_the_month_beside_a_weekday_is_due_on_the_weekday() -> None:
    assert due("0 4 31 2 1", start=datetime(2027, 1, 1, tzinfo=UTC)) == ["Mon 02-01 04:00"]


def test_a_rare_day_is_found_across_a_century_without_a_leap_day() -> None:
    start = datetime(2096, 3, 1, tzinfo=UTC)
    assert CronLine.parse("0 0 29 2 *").next_after(start, ZULU).year == 2104
    assert CronLine.parse("0 0 29 2 */6").next_after(start, ZULU).strftime("%m-%d") == "02-29"


def test_a_time_is_one_of_the_zone_in_summer_and_in_winter() -> None:
    line = CronLine.parse("0 4 * * *")
    assert line.next_after(datetime(2026, 7, 1, tzinfo=UTC), BERLIN).hour == 2
    assert line.next_after(datetime(2026, 12, 1, tzinfo=UTC), BERLIN).hour == 3


def test_a_time_that_the_change_to_summer_time_leaves_out_comes_later_that_day() -> None:
    start = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert due("30 2 * * *", 2, start, BERLIN) == ["Sun 03-29 03:30", "Mon 03-30 02:30"]
    half_hours = due("*/30 * * * *", 4, datetime(2026, 3, 29, 0, 15, tzinfo=UTC), BERLIN)
    assert half_hours == ["Sun 03-29 01:30", "Sun 03-29 03:00", "Sun 03-29 03:30", "Sun 03-29 04:00"]


def test_a_time_that_the_change_back_repeats_comes_once_and_twice_where_every_hour_counts() -> None:
    start = datetime(2026, 10, 24, 23, 0, tzinfo=UTC)
    assert due("30 2 * * *", 2, start, BERLIN) == ["Sun 10-25 02:30", "Mon 10-26 02:30"]
    assert due("30 * * * *", 4, start, BERLIN)[1:3] == ["Sun 10-25 02:30", "Sun 10-25 02:30"]


def test_a_time_zone_that_there_is_not_gets_a_suggestion() -> None:
    assert time_zone("America/New_York").key == "America/New_York"
    for wrong, hint in (
        ("Europe/Berln", "Europe/Berlin"),
        ("new york", "America/New_York"),
        ("+2", "UTC"),
        ("", "UTC"),
        ("../etc/passwd", "for example"),
        ("Europe", ""),
    ):
        with pytest.raises(CronError) as caught:
            time_zone(wrong)
        assert hint in str(caught.value)


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    return st.one_of(
        st.just("*"), st.integers(low, high).map(str), st.integers(1, high).map(lambda n: f"*/{n}")
    )


@given(
    numbers(0, 59),
    numbers(0, 23),
    numbers(1, 28),
    numbers(1, 12),
    numbers(0, 7),
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
    st.sampled_from([ZULU, BERLIN, ZoneInfo("Asia/Kathmandu"), ZoneInfo("Australia/Lord_Howe")]),
)
@settings(max_examples=150, deadline=None)
def test_the_next_time_is_the_first_minute_whose_local_clock_fits(
    minute: str, hour: str, day: str, month: str, weekday: str, start: datetime, zone: ZoneInfo
) -> None:
    """Against a slow reference: minute after minute, for two days."""
    line = CronLine.parse(f"{minute} {hour} {day} {month} {weekday}")
    found = line.next_after(start, zone)
    assert found > start
    moment = start.replace(second=0, microsecond=0)
    seen: set[tuple[int, ...]] = set()
    for _ in range(2 * 24 * 60):
        moment += timedelta(minutes=1)
        local = moment.astimezone(zone)
        if moment >= found:
            break
        repeated = local.fold == 1 and not line.every_hour
        fits = (
            local.minute in line.minutes
            and local.hour in line.hours
            and local.month in line.months
            and line._matches(local.date())
        )
        assert not fits or repeated, (moment, found)
        seen.add(local.timetuple()[:5])
