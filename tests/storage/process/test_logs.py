import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, structlog
from storage.process import logs
logs.configure("trainer")
structlog.get_logger().info("run_finished", run="r1", duration_ms=12)
structlog.get_logger().debug("not shown")
logging.getLogger("discord").warning("from a library")
try:
    raise ValueError("no")
except ValueError:
    structlog.get_logger().exception("it_broke")
"""


def test_every_line_is_json_with_the_process_when_nobody_watches_a_terminal() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    first, library, broken = (json.loads(line) for line in result.stderr.splitlines())
    assert (first["event"], first["run"], first["duration_ms"], first["process"]) == (
        "run_finished",
        "r1",
        12,
        "trainer",
    )
    assert first["level"] == "info" and first["timestamp"].endswith("Z")
    assert (library["event"], library["level"]) == ("from a library", "warning")
    assert "ValueError: no" in broken["exception"]
    assert result.stdout == ""
