"""The protocol with peers, over a real process that stands in for another server."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from tests.bench.serving.errors import PeerFailedError, PeerMissingError
from tests.bench.serving.peer import LLAMA_CPP, PeerSide
from tests.bench.serving.peers.lines import serve, timing

ROOT = Path(__file__).resolve().parents[4]
SERVER = """
import sys, time
from tests.bench.serving.peers.lines import claim_standard_output, serve, timing

def run(prompts, tokens):
    print("a library talks on standard output")
    if tokens == 0:
        raise ValueError("no tokens")
    if tokens == 99:
        sys.exit("out of memory")
    if tokens == 98:
        time.sleep(60)
    clock = (1.0, 2.0)
    took = timing(len(prompts), tokens, start=(0.0, 0.0), first=clock, last=(2.0, 4.0), end=(3.0, 5.0),
                  decoded=len(prompts) * (tokens - 1))
    return {"timing": took}

answers = claim_standard_output()
serve(sys.stdin, answers, {"run": run})
"""


@pytest.fixture
def peer(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    side = PeerSide("other", [sys.executable, "-c", SERVER], tmp_path / "logs" / "other.log", environment)
    yield side
    side.close()


def test_a_peer_measures_itself_and_answers_with_a_timing(peer: PeerSide) -> None:
    took = peer.run([[1, 2], [3, 4]], 5)
    assert (took.streams, took.whole_tokens, took.decode_tokens) == (2, 10, 8)
    assert (took.whole_cpu_s, took.decode_cpu_s, took.decode_wall_s) == (5.0, 2.0, 1.0)
    assert peer.run([[1]], 3).decode_tokens == 2


def test_what_a_peer_refuses_is_an_error_and_the_next_request_works(peer: PeerSide) -> None:
    with pytest.raises(PeerFailedError, match="ValueError: no tokens"):
        peer.run([[1]], 0)
    with pytest.raises(PeerFailedError, match="unknown request 'fly'"):
        peer.ask("fly", 10.0)
    assert peer.run([[1]], 2).whole_tokens == 2


def test_the_last_word_of_a_peer_that_ended_is_the_reason(peer: PeerSide) -> None:
    with pytest.raises(PeerFailedError, match="the process ended: out of memory"):
        peer.run([[1]], 99)
    with pytest.raises(PeerFailedError, match="the process ended"):
        peer.run([[1]], 1)


def test_a_peer_that_ended_before_a_request_could_be_sent_is_closed_quietly(peer: PeerSide) -> None:
    process = peer._process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.write("a request that stays behind\n")
    peer.close()
    assert process.stdin.closed


def test_a_silent_peer_is_given_up(peer: PeerSide) -> None:
    with pytest.raises(PeerFailedError, match="no answer to 'run' within 0 s"):
        peer.ask("run", 0.2, prompts=[[1]], tokens=98)
    peer.close(grace_s=0.0)


def test_a_peer_that_is_not_installed_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(PeerMissingError, match="not installed: make bench-peers"):
        PeerSide.start(LLAMA_CPP, tmp_path, source="", quantized="", lora="")


def test_the_server_side_stops_at_quit_and_answers_one_line_each() -> None:
    requests = io.StringIO('{"do": "add", "a": 1, "b": 2}\n{"do": "quit"}\n{"do": "add", "a": 5, "b": 5}\n')
    answers = io.StringIO()
    serve(requests, answers, {"add": lambda a, b: {"sum": a + b}})
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [{"sum": 3}]


def test_a_peers_timing_has_the_fields_of_ours() -> None:
    from tests.bench.serving.timing import timing_from_json

    clocks = {"start": (0.0, 0.0), "first": (1.0, 1.0), "last": (2.0, 3.0), "end": (2.0, 3.0)}
    assert timing_from_json(timing(1, 4, decoded=3, **clocks)).decode_rate() == 1.5
