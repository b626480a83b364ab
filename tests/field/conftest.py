"""The bot under simcord's virtual Discord, as its own tests have it."""

from tests.bot.conftest import community, database, model_server, services, settings, simcord_bot

__all__ = ["community", "database", "model_server", "services", "settings", "simcord_bot"]
