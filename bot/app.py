"""The whole bot put together: the one place that knows every feature."""

from __future__ import annotations

from bot.admin import setup as admin
from bot.charts.renderer import Studio
from bot.chat import setup as chat
from bot.client import ShardedStropClient, StropClient
from bot.feedback import setup as feedback
from bot.feedback.reply_buttons import Controls
from bot.gateway.unstored_events import UnstoredEvents
from bot.learning import setup as learning
from bot.privacy import setup as privacy
from bot.privacy.deletions import DeletionKeeper
from bot.services import Services
from bot.telemetry import setup as telemetry
from bot.ui import setup as ui


def make_client(services: Services) -> StropClient:
    """Return a client with every feature, and with as many shards as the configuration says."""
    shards = services.shards
    app = (
        ShardedStropClient(services, shard_count=shards.count, shard_ids=list(shards.ids))
        if shards.count > 1
        else StropClient(services)
    )
    studio = app.add_feature(Studio())

    async def compare_all() -> None:
        app.start_session_jobs()

    unstored = app.add_feature(UnstoredEvents(compare_all))
    deletions = app.add_feature(DeletionKeeper(services, app))
    controls = app.add_feature(Controls(services.config.replies))
    ui.setup(app)
    chat.setup(app, controls, deletions.overtook)
    feedback.setup(app)
    privacy.setup(app)
    learning.setup(app)
    admin.setup(app)
    telemetry.setup(app)
    app.at_shutdown(unstored.stop)
    app.at_shutdown(studio.stop)
    return app
