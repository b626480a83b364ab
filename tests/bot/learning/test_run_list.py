"""/runs: each run in three lines, in every language, a page at a time."""

from __future__ import annotations

import pytest

from bot.language import texts
from bot.learning import run_list
from storage.learning import run_summary
from tests.bot.cli.test_run_history import METRICS, a_finished_run
from tests.bot.conftest import Community
from tests.bot.test_commands import text


async def test_a_member_reads_the_runs_of_this_server_only(community: Community) -> None:
    assert "There are no runs yet" in text(await community.bob.slash(community.channel, "runs"))
    run_id = community.services.database.write(lambda db: a_finished_run(db, "refused", METRICS))
    elsewhere = text(await community.bob.slash(community.channel, "runs"))
    assert run_id not in elsewhere

    def move(db: object) -> None:
        db.execute("UPDATE runs SET scope = ?", (f"guild:{community.guild.id}",))  # type: ignore[attr-defined]

    community.services.database.write(move)
    told = text(await community.bob.slash(community.channel, "runs"))
    for part in (run_id, "not promoted", "gain +0.12 (+0.03 to +0.20)", "30 liked, 12 disliked"):
        assert part in told
    for part in ("12 min", "23 min of processor time", "at most 1.9 GB", "2.0 Wh", "12 of 28 steps"):
        assert part in told


@pytest.mark.parametrize("language", texts.LANGUAGES)
async def test_a_page_fits_into_a_message_in_every_language(community: Community, language: str) -> None:
    def work(db: object) -> None:
        for _ in range(run_list.PAGE + 1):
            a_finished_run(db, "refused", METRICS)  # type: ignore[arg-type]

    community.services.database.write(work)
    found = community.services.database.read(
        lambda db: run_summary.page(db, "guild:1", skip=1, limit=run_list.PAGE)
    )
    with texts.speaking(language):
        shown = run_list.page_text(found, number=1, pages=2)
    assert shown.count("**") == 2 * run_list.PAGE and len(shown) < 1900
