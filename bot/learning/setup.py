"""Learning put together: the loop's commands, the messages of its runs, and tastings."""

from __future__ import annotations

from bot.chat.answerer import Answerer
from bot.client import StropClient
from bot.learning import adapters, retrain, run_list, stats, status, tasting_commands
from bot.learning.blind_votes import VoteButton
from bot.learning.champion import ChampionChanges
from bot.learning.run_buttons import RunButton
from bot.learning.run_progress import ProgressReporter
from bot.learning.tasting_host import TastingHost
from bot.ui.form_router import FormRouter


def setup(app: StropClient) -> None:
    """Add what shows and steers the learning loop."""
    services = app.services
    app.add_feature(ChampionChanges(services.config, services.database, services.model))
    app.tree.add_command(status.status)
    app.tree.add_command(status.promote)
    app.tree.add_command(status.reject)
    app.tree.add_command(status.rollback)
    app.tree.add_command(adapters.adapters_command)
    app.tree.add_command(retrain.retrain)
    app.tree.add_command(run_list.runs_command)
    app.tree.add_command(stats.stats)
    app.tree.add_command(tasting_commands.group)
    app.add_dynamic_items(
        RunButton, VoteButton, adapters.AdaptersButton, run_list.RunsButton, tasting_commands.OfferButton
    )
    app.feature(FormRouter).on("prompts", tasting_commands.store_prompts)
    app.run_beside(app.add_feature(ProgressReporter(services, app)))
    app.run_beside(app.add_feature(TastingHost(services, app, app.feature(Answerer))))
