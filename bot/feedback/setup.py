"""What people do with a reply, put together: its buttons and menu, reactions, votes, their own ratings."""

from __future__ import annotations

from discord import app_commands

from bot.chat.answerer import Answerer
from bot.chat.listener import MessageListener
from bot.client import StropClient
from bot.feedback import context_menu, corrections, my_ratings, reports
from bot.feedback.interrupted_replies import InterruptedReplies
from bot.feedback.reactions import RatingRecorder
from bot.feedback.reply_actions import ReplyActions
from bot.feedback.reply_buttons import Controls, ReplyButton
from bot.feedback.side_by_side import CompareButton
from bot.gateway.unstored_events import UnstoredEvents
from bot.ui.form_router import FormRouter


def setup(app: StropClient) -> None:
    """Add what people can do with a reply; the buttons themselves are `Controls`."""
    controls, answerer = app.feature(Controls), app.feature(Answerer)
    actions = app.add_feature(ReplyActions(app, controls, answerer, app.feature(MessageListener)))
    interrupted = InterruptedReplies(app, controls, actions, app.feature(MessageListener), answerer)
    recorder = app.add_feature(RatingRecorder(app.services, app, answerer.is_writing_in))
    unstored = UnstoredEvents(recorder.reconcile)
    for name, callback in context_menu.ENTRIES.items():
        app.tree.add_command(app_commands.ContextMenu(name=name, callback=callback))
    app.add_dynamic_items(ReplyButton, CompareButton, *my_ratings.dynamic_items())
    forms = app.feature(FormRouter)
    forms.on("better", corrections.store_correction)
    forms.on("report", reports.store_report)
    for name, handler in (
        ("raw_reaction_add", recorder.handle_added),
        ("raw_reaction_remove", recorder.handle_removed),
        ("raw_reaction_clear", recorder.handle_cleared),
        ("raw_reaction_clear_emoji", recorder.emoji_cleared),
    ):
        app.listen(name, unstored.compared(handler, recorder.compare))
    app.at_shutdown(unstored.stop)
    app.at_setup(interrupted.find)
    # What it leaves unanswered, the search for missed questions finds.
    app.at_session(interrupted.settle, first=True)
    app.at_session(recorder.reconcile)
