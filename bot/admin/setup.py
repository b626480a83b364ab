"""Administration put together: what operators, admins and moderators use, and what operators are told."""

from __future__ import annotations

from bot.admin import moderation, records, server_check, settings
from bot.admin.alert_destinations import AlertWebhook, OperatorsChannel
from bot.admin.alerts import OperationsWatch
from bot.admin.team import TeamReader
from bot.client import StropClient
from bot.delivery.webhook import Webhook
from bot.ui.form_router import FormRouter


def setup(app: StropClient) -> None:
    """Add what runs a server, and the watch that tells its operators."""
    app.tree.add_command(settings.settings_command)
    app.tree.add_command(server_check.setup)
    app.tree.add_command(moderation.forget)
    app.tree.add_command(moderation.block)
    app.tree.add_command(moderation.unblock)
    app.tree.add_command(moderation.blocked)
    app.tree.add_command(records.export)
    app.tree.add_command(records.audit_command)
    app.add_dynamic_items(records.AuditButton, *settings.dynamic_items())
    app.feature(FormRouter).on("setting", settings.store_submitted)
    config = app.services.config
    channel = OperatorsChannel(app.services, app) if config.discord.operators_channel else None
    app.run_beside(app.add_feature(OperationsWatch(app.services, app, channel)))
    app.run_beside(TeamReader(app))
    webhook = Webhook.from_config(config)
    app.run_beside(OperationsWatch(app.services, app, AlertWebhook(webhook) if webhook else None))
