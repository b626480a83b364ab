from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.serving.engine.detokenizer import TextStream
from tests.tiny_model import build_tiny_tokenizer

TOKENIZER = build_tiny_tokenizer()


def stream(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    decoder = TextStream(TOKENIZER, stop)
    pieces = []
    for token in TOKENIZER(text)["input_ids"]:
        pieces.append(decoder.push(token))
        if decoder.stopped:
            return pieces, decoder
    return [*pieces, decoder.finish()], decoder


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
@example("👩‍👩‍👧 family 🎉🎉")
def test_the_pieces_join_to_the_whole_text(text: str) -> None:
    assert "".join(stream(text)[0]) == text


@given(st.text("ab👍é", max_size=20))
@settings(max_examples=100, deadline=None)
def test_no_piece_ever_holds_half_a_character(text: str) -> None:
    assert all("\ufffd" not in piece for piece in stream(text)[0])


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    pieces, decoder = stream(text, tuple(stops))
    places = [text.find(stop) for stop in stops if stop in text]
    assert decoder.stopped == bool(places)
    # Which stop completes first is what counts; before that, nothing of a stop string was shown.
    shown = "".join(pieces)
    assert text.startswith(shown)
    assert all(stop not in shown for stop in stops)
    if not places:
        assert shown == text


def test_a_reply_cut_inside_an_emoji_ends_before_it() -> None:
    ids = TOKENIZER("ok 🎉")["input_ids"]
    decoder = TextStream(TOKENIZER)
    text = "".join(decoder.push(token) for token in ids[:-1]) + decoder.finish()
    assert text == "ok "
