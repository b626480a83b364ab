"""The pictures: readable on any theme and without colour, within their card, whatever the figures are."""

from __future__ import annotations

import asyncio
import contextvars
import io
import threading
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from bot.charts import axes, canvas, rating_chart, status_chart, week_chart
from bot.charts.canvas import BLUE, EDGE, GROUND, INK, ORANGE, SCALE, SOFT, WIDTH
from bot.charts.picture import Picture
from bot.charts.rating_chart import RatingFigures
from bot.charts.renderer import Studio
from bot.charts.status_chart import LoopFigures, Need
from bot.charts.week_text import WeekFigures
from bot.language import texts
from bot.language.texts import tr
from storage.chat.latency import Speed, Wait
from storage.feedback import like_rate
from storage.feedback.like_rate import LikeRate, Week
from storage.feedback.rating_statistics import AdapterShare, Day, Votes

PAGE = {"dark": "#313338", "light": "#ffffff"}
COUNTS = st.one_of(st.integers(0, 3), st.integers(0, 3_000_000))
MILLISECONDS = st.one_of(st.integers(0, 900), st.integers(0, 10_000_000))
VOTES = st.one_of(st.none(), st.builds(Votes, COUNTS, COUNTS.map(lambda count: count + 1)))
IDS = st.one_of(st.none(), st.text("abcdef0123456789-_W", min_size=1, max_size=64))


@st.composite
def rating_figures(draw: st.DrawFn) -> RatingFigures:
    days = [Day(number, draw(COUNTS), draw(COUNTS)) for number in range(14)]
    shares = [
        AdapterShare(each, draw(COUNTS), draw(COUNTS) + 1, draw(VOTES))
        for each in draw(st.lists(IDS, max_size=8, unique=True))
    ]
    changes = draw(st.dictionaries(st.integers(0, 13), IDS, max_size=6))
    return RatingFigures(days, shares, 90, draw(IDS), changes)


@st.composite
def week_figures(draw: st.DrawFn) -> WeekFigures:
    rates = st.builds(LikeRate, COUNTS, COUNTS.map(lambda count: count + 1))
    many = draw(st.sampled_from([2, 12, 104]))
    weeks = [Week(4 + 7 * number, draw(st.one_of(st.none(), rates))) for number in range(many)]
    changes = draw(st.dictionaries(st.integers(-5, 7 * many + 9), IDS, max_size=6))
    drift = like_rate.compare([(draw(st.integers(0, 9)), 9)] * 6, [(5, 9)] * 6)
    return WeekFigures(weeks, [], drift, changes)


@st.composite
def standings(draw: st.DrawFn) -> LoopFigures:
    def wait() -> Wait:
        median = draw(MILLISECONDS)
        return Wait(draw(COUNTS) + 1, median, median + draw(MILLISECONDS))

    hours = tuple(wait() if draw(st.booleans()) else None for _ in range(24))
    needs = [Need(tr("Liked or corrected"), draw(COUNTS), draw(COUNTS)) for _ in range(3)]
    running = draw(st.one_of(st.none(), st.just(Need(tr("Evaluation"), draw(st.integers(0, 100)), 100))))
    phrase = draw(st.sampled_from(["", tr("only when /retrain asks for it"), "W" * 90]))
    speed = Speed(hours, wait() if any(hours) else None, draw(MILLISECONDS), draw(MILLISECONDS))
    return LoopFigures(needs, phrase, speed, phrase, running)


def spoken(language: str, draw: Callable[[], Picture]) -> Picture:
    """Draw in a language, and leave that of other tests alone."""
    context = contextvars.copy_context()
    context.run(texts.speak, language)
    return context.run(draw)


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture.png)).convert("RGBA")


def assert_within_its_card(picture: Picture) -> None:
    """The margins are bare: what would stick out of the card would show there."""
    image = opened(picture)
    assert image.width == WIDTH * SCALE and image.height <= 820
    margin, corner = 15 * SCALE, 12 * SCALE
    for left in (2 * SCALE, image.width - margin):
        strip = image.crop((left, corner, left + margin - 2 * SCALE, image.height - corner)).convert("RGB")
        assert [(count, near(color, GROUND)) for count, color in strip.getcolors() or ()] == [
            (strip.width * strip.height, True)
        ]


def near(color: Any, wanted: str) -> bool:
    """A palette of 256 colours may be off by a hair."""
    return all(abs(one - two) <= 2 for one, two in zip(color, ImageColor.getrgb(wanted), strict=False))


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(rating_figures(), st.sampled_from(texts.LANGUAGES))
def test_whatever_the_ratings_are_the_picture_stays_within_its_card(
    figures: RatingFigures, language: str
) -> None:
    assert_within_its_card(spoken(language, lambda: rating_chart.draw(figures)))


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(week_figures(), st.sampled_from(texts.LANGUAGES))
def test_whatever_the_weeks_were_the_picture_stays_within_its_card(
    figures: WeekFigures, language: str
) -> None:
    assert_within_its_card(spoken(language, lambda: week_chart.draw(figures)))


def test_the_picture_of_weeks_says_in_words_what_it_shows() -> None:
    weeks = [Week(4, LikeRate(3, 1)), Week(11, None), Week(18, LikeRate(1, 1))]
    drift = like_rate.compare([(0, 9)] * 6, [(9, 9)] * 6)
    words = week_chart.draw(WeekFigures(weeks, [], drift)).alt
    assert "1970-01-05 75%. 1970-01-19 50%." in words
    assert "Liked less than before: 0% in the last 7 days, 100% in the 28 days before." in words


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(standings(), st.sampled_from(texts.LANGUAGES))
def test_whatever_the_loop_is_at_the_picture_stays_within_its_card(
    figures: LoopFigures, language: str
) -> None:
    assert_within_its_card(spoken(language, lambda: status_chart.draw(figures)))


def luminance(color: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [part / 255 for part in ImageColor.getrgb(color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_marks_stand_out_from_the_card() -> None:
    assert min(contrast(ink, GROUND) for ink in (INK, SOFT)) >= 7
    assert min(contrast(mark, GROUND) for mark in (BLUE, ORANGE)) >= 4.5


@pytest.mark.parametrize("page", PAGE.values(), ids=PAGE.keys())
def test_the_card_has_an_edge_on_dark_and_on_light(page: str) -> None:
    picture = opened(rating_chart.draw(RatingFigures([Day(1, 1, 0)] * 14, [], 90)))
    shown = Image.new("RGBA", picture.size, page)
    shown.alpha_composite(picture)
    assert near(shown.getpixel((0, 0)), page)
    assert near(shown.getpixel((0, picture.height // 2)), EDGE)
    assert max(contrast(EDGE, page), contrast(GROUND, page)) > 1.25


def test_liked_and_disliked_are_told_apart_without_colour() -> None:
    picture = opened(rating_chart.draw(RatingFigures([Day(number, 10, 10) for number in range(14)], [], 90)))
    grey = picture.convert("L")
    middle = 62 + 58  # the zero line: liked above it, disliked below
    left = (48 + 34 // 2 - 6) * SCALE
    above = grey.crop((left, (middle - 40) * SCALE, left + 8 * SCALE, (middle - 10) * SCALE)).getcolors()
    below = grey.crop((left, (middle + 10) * SCALE, left + 8 * SCALE, (middle + 40) * SCALE)).getcolors()
    assert above is not None and len(above) == 1, "a liked bar is plain"
    assert below is not None and len(below) > 3, "a disliked bar is striped"


@pytest.mark.parametrize("language", [language for language in texts.LANGUAGES if language != "en"])
def test_the_fonts_have_every_letter_of_every_text(language: str) -> None:
    letters = {
        letter
        for said in texts.catalogue(language).values()
        for letter in said
        if not letter.isspace() and unicodedata.category(letter) not in ("So", "Mn")
    }
    missing = []
    for letter in letters:
        ((_, font),) = canvas._runs(letter, 13, False)
        if bytes(font.getmask(letter)) == bytes(font.getmask("\ufffe")):
            missing.append(letter)
    assert missing == []


@given(st.floats(0.001, 1e9))
def test_an_axis_ends_at_a_round_number_not_far_above_its_values(most: float) -> None:
    top = axes.round_top(most)
    assert most <= top * (1 + 1e-9) and (top <= most * 1.5 or most < 0.002)
    assert len(f"{top:f}".replace(".", "").strip("0")) <= 2


@given(st.integers(1, 10**9))
def test_an_axis_of_counts_has_a_whole_number_in_its_middle(most: int) -> None:
    top = axes.round_top(most, whole=True)
    assert most <= top and top % 2 == 0 and top <= max(2, most * 2)


@given(st.sets(st.text("ab", min_size=1, max_size=30), max_size=8))
def test_short_names_tell_adapters_apart(ids: set[str]) -> None:
    names = axes.short_names(ids)
    assert names.keys() == ids and len(set(names.values())) == len(ids)
    assert all(each.startswith(name.removesuffix("…")) for each, name in names.items())


async def test_pictures_are_drawn_beside_the_event_loop_in_the_callers_language() -> None:
    studio, drawn_in = Studio(), []

    def draw() -> Picture:
        drawn_in.append(threading.current_thread())
        return Picture("x", b"", tr("today"))

    async def asked_in(language: str) -> str:
        texts.speak(language)
        picture = await studio.picture(draw)
        assert picture is not None
        return picture.alt

    assert await asyncio.gather(asked_in("de"), asked_in("fr"), asked_in("en")) == [
        "heute",
        "aujourd'hui",
        "today",
    ]
    assert len(set(drawn_in)) == 1 and drawn_in[0] is not threading.current_thread()
    await studio.stop()


async def test_a_drawing_that_fails_or_takes_too_long_is_no_picture_and_a_line_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    studio, released = Studio(deadline_s=0.2), threading.Event()

    def fail() -> Picture:
        raise OSError("a font is gone")

    def hang() -> Picture:
        released.wait(20)
        return Picture("x", b"", "")

    assert await studio.picture(fail) is None
    assert await studio.picture(hang) is None
    released.set()
    await studio.stop()
    assert await studio.picture(fail) is None, "nothing is drawn any more"
    said = capsys.readouterr().out
    assert said.count("] picture.not_drawn") == 3 and "a font is gone" in said and "TimeoutError" in said


def test_an_attachments_words_are_cut_to_what_discord_takes() -> None:
    assert Picture("x", b"", "word " * 1000).as_file().description == ("word " * 1000)[:1024]


def test_what_a_run_needs_is_said_beside_what_there_is_and_never_39_of_25() -> None:
    figures = LoopFigures([Need("Liked", 39, 25)], "now", Speed((None,) * 24, None, None, None), "idle")
    assert "Liked: 39, needed: 25." in status_chart.alt_text(figures)
