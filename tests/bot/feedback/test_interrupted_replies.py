"""What an earlier process left open, where the database can't be used at the start."""

from __future__ import annotations

import pytest
from sqlite_utils.utils import sqlite3

from bot.chat.answerer import Answerer
from bot.chat.listener import MessageListener
from bot.feedback.interrupted_replies import InterruptedReplies
from bot.feedback.reply_actions import ReplyActions
from bot.feedback.reply_buttons import Controls
from storage.chat import open_replies
from storage.db import sql
from storage.errors import DatabaseBusyError
from tests.bot.conftest import Community


async def test_a_database_that_is_locked_meanwhile_leaves_no_reply_open(community: Community) -> None:
    for word in ("one", "two", "three"):
        await community.ann.send(community.channel, f"{community.mention} {word}")
    bot, database = community.bot, community.services.database
    database.write(lambda db: db.conn.execute("PRAGMA busy_timeout=20").fetchone())
    database.write(lambda db: sql.change(db, "UPDATE replies SET status = 'streaming'"))
    interrupted = InterruptedReplies(
        bot,
        bot.feature(Controls),
        bot.feature(ReplyActions),
        bot.feature(MessageListener),
        bot.feature(Answerer),
    )
    await interrupted.find()
    other = sqlite3.connect(str(database.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusyError):
        await interrupted.settle()
    assert len(database.read(open_replies.all_open)) == 3
    other.execute("ROLLBACK")
    other.close()
    await interrupted.settle()
    assert database.read(open_replies.all_open) == []
