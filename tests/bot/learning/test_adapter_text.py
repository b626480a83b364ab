"""/adapters: every adapter's lineage, a page at a time, in words of any language."""

from __future__ import annotations

from typing import Any

import pytest

from bot.language import texts
from bot.learning import adapter_text
from bot.learning.adapters import PAGE
from storage.learning import adapters, lineage, runs
from tests.bot.adapter_files import FIRST, SECOND, lay
from tests.bot.conftest import Community
from tests.bot.fake_server import BASE_HASH
from tests.bot.feedback.test_reply_buttons import buttons
from tests.bot.test_commands import register, text

METRICS = {
    "headline": {"value": 0.12, "low": 0.05, "high": 0.19, "n": 40},
    "data": {"train": {"liked": 30, "disliked": 12, "corrections": 2}, "raters": 7},
}


def trained(community: Community, adapter_id: str, actor: str = "trainer") -> str:
    """Let a run make an adapter and promote it; return the run's id."""
    scope = f"guild:{community.guild.id}"

    def work(db: Any) -> str:
        run = runs.enqueue(db, scope=scope, trigger="manual", requested_by="1")
        runs.lease_next(db, "test", 60_000)
        path, before = f"adapters/{adapter_id}", adapters.champion(db, scope, BASE_HASH)
        adapters.insert_candidate(
            db, adapter_id=adapter_id, scope=scope, base_hash=BASE_HASH, path=path, run_id=run.id
        )
        adapters.promote(
            db, scope=scope, base_hash=BASE_HASH, adapter_id=adapter_id, actor=actor, reason="", run_id=run.id
        )
        runs.finish(
            db,
            run.id,
            outcome="promoted",
            message="",
            metrics=METRICS,
            adapter_id=adapter_id,
            champion_id=before,
        )
        return run.id

    lay(community.services.config.adapters, adapter_id)
    return community.services.database.write(work)


async def test_an_adapters_lineage_names_its_run_its_score_and_its_time_of_answering(
    community: Community,
) -> None:
    first, second = trained(community, FIRST), trained(community, SECOND, actor="123")
    await community.ann.slash(community.channel, "rollback")
    said = text(await community.bob.slash(community.channel, "adapters"))
    assert said.startswith(f"Adapter `{FIRST}` answers.") and f"▶ `{FIRST}` promoted, <t:" in said
    made = "30 liked, 12 disliked, 2 corrections, 7 raters."
    assert all(f"-# Trained from the base model by run `{run}`: {made}" in said for run in (first, second))
    assert "-# Score +0.12 (+0.05 to +0.19) on 40 conversations, against the base model." in said
    assert f"-# Score +0.12 (+0.05 to +0.19) on 40 conversations, against `{FIRST}`." in said
    assert f"-# Back in place of `{SECOND}` <t:" in said
    assert f"-# Promoted by hand in place of `{FIRST}` <t:" in said
    assert f"; rolled back to `{FIRST}` <t:" in said
    assert "123" not in said and str(community.ann.id) not in said


async def test_the_pages_turn_by_buttons(community: Community) -> None:
    names = [f"a{number:016}" for number in range(2 * PAGE + 1)]
    for name in names:
        register(community, name)
    result = await community.bob.slash(community.channel, "adapters")
    first = result.response
    assert "Page 1 of 3." in text(result) and buttons(first) == ["Older"]
    seen = [text(result)]
    for page, offered in ((1, ["Newer", "Older"]), (2, ["Newer"])):
        await community.bob.click(first, custom_id=f"strop:adapters:{page}")
        assert buttons(first) == offered
        seen.append(first.content)
    assert sorted(name for name in names for page in seen if f"`{name}`" in page) == names
    await community.bob.click(first, custom_id="strop:adapters:1")
    assert first.content == seen[1]


@pytest.mark.parametrize("language", texts.LANGUAGES)
async def test_a_full_page_fits_one_message_in_every_language(community: Community, language: str) -> None:
    for number in range(PAGE):
        trained(community, f"a{number:016}", actor="123")
    scope = f"guild:{community.guild.id}"
    histories = community.services.database.read(lambda db: lineage.page(db, scope, skip=0, limit=PAGE))
    texts.speak(language)
    said = adapter_text.page_text(histories, histories[0].adapter.id, number=12, pages=99)
    assert len(said) <= 2000 and all(f"`{history.adapter.id}`" in said for history in histories)
    assert said.count("-# ") == 3 * PAGE
