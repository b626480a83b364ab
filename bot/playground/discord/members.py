"""What a member does in the playground: write, edit, delete, react; each as far as Discord would let them."""

from collections.abc import Sequence

from simcord.backend import serializers
from simcord.backend.access import channel_accessible, message_accessible, reaction_permissions
from simcord.backend.errors import BackendError
from simcord.backend.models import Channel, Message

from bot.playground.discord.world import Payload, World
from bot.playground.errors import ActionRefusedError


class MemberActions(World):
    """The server, used by its members."""

    def _page_message(self, message: Message) -> Payload:
        return self._with_reactors(serializers.message_payload(self._backend, message))

    def send_message(
        self,
        channel_id: int,
        author_id: int,
        content: str,
        *,
        reply_to: int | None = None,
        files: Sequence[tuple[str, bytes]] = (),
    ) -> Payload:
        """Post a message, with files as (name, bytes); raises ActionRefusedError where Discord would."""
        channel = self._accessible_channel(channel_id, author_id)
        if content.strip() or not files:
            _check_content(content)
        reference = None if reply_to is None else {"channel_id": str(channel_id), "message_id": str(reply_to)}
        with _refusals():
            permission = "send_messages_in_threads" if channel.is_thread else "send_messages"
            self._backend.require_permissions(channel.guild_id, author_id, channel_id, permission)
            if reply_to is not None:
                self._backend.get_message(channel_id, reply_to)
            stored = self._backend.store_attachments(channel_id, files)
            message = self._backend.create_message(
                channel_id, author_id, content, reference=reference, attachments=stored
            )
        return self._page_message(message)

    def edit_message(self, channel_id: int, message_id: int, user_id: int, content: str) -> Payload:
        """Change a member's own message."""
        message = self._visible_message(channel_id, message_id, user_id)
        if message.author_id != user_id:
            raise ActionRefusedError("Only the author of a message can edit it.", 403)
        _check_content(content)
        with _refusals():
            return self._page_message(
                self._backend.edit_message(channel_id, message_id, {"content": content})
            )

    def delete_message(self, channel_id: int, message_id: int, user_id: int) -> None:
        """Delete a member's own message, or any as somebody who may manage messages."""
        message = self._visible_message(channel_id, message_id, user_id)
        with _refusals():
            if message.author_id != user_id and not message.is_ephemeral:
                self._backend.require_permissions(
                    self._backend.get_channel(channel_id).guild_id, user_id, channel_id, "manage_messages"
                )
            self._backend.delete_message(channel_id, message_id)

    def set_reaction(
        self, channel_id: int, message_id: int, user_id: int, emoji: str, *, reacted: bool
    ) -> None:
        """Add or take back a member's reaction; doing it twice changes nothing."""
        message = self._visible_message(channel_id, message_id, user_id)
        if not emoji or len(emoji) > 64:
            raise ActionRefusedError("A reaction needs one emoji.")
        with _refusals():
            self._backend.require_permissions(
                self._backend.get_channel(channel_id).guild_id,
                user_id,
                channel_id,
                *reaction_permissions(message, emoji, reacted=reacted),
            )
            self._backend.set_reaction(channel_id, message_id, emoji, user_id, reacted)

    def _accessible_channel(self, channel_id: int, user_id: int) -> Channel:
        channel = self._backend.channels.get(channel_id)
        if channel is None or user_id not in self._backend.users:
            raise ActionRefusedError("That channel or member doesn't exist here.", 404)
        if not channel_accessible(self._backend, channel_id, user_id):
            raise ActionRefusedError("This member can't see that channel.", 403)
        return channel

    def _visible_message(self, channel_id: int, message_id: int, user_id: int) -> Message:
        self._accessible_channel(channel_id, user_id)
        message = self._backend.messages[channel_id].get(message_id)
        if message is None or not message_accessible(self._backend, channel_id, message, user_id):
            raise ActionRefusedError("That message doesn't exist (any more).", 404)
        return message


class _refusals:
    """Turns simcord's errors into the sentence a visitor reads."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BackendError):
            raise ActionRefusedError(f"Discord refuses this: {error.message}.", error.status) from error


def _check_content(content: str) -> None:
    if not content.strip():
        raise ActionRefusedError("An empty message can't be sent: write something first.")
    if len(content) > 2000:
        raise ActionRefusedError(f"A message holds at most 2,000 characters; this one has {len(content):,}.")
