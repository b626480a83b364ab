"""What was liked since a moment, from the counts that triggers keep of each day.

Statistics of months would otherwise look up the reply of every rating. The counts are of whole days (UTC); of
the day on which the time begins, the ratings themselves are counted.
"""

from storage.chat.replies import IMPORTED
from storage.db.clock import DAY_MS

# Replies that came in a file were written by no adapter here, and liked or disliked elsewhere.
WRITTEN_HERE = f"(ratings.reply_id < '{IMPORTED}' OR ratings.reply_id >= '{IMPORTED}~')"

COUNTED = f"""(
    SELECT day, adapter_id, channel_id, public, imported, liked, disliked FROM rating_days
    WHERE scope = :scope AND day >= :first_whole_day AND liked + disliked > 0
    UNION ALL
    SELECT :first_whole_day - 1, coalesce(replies.adapter_id, ''), conversations.channel_id,
           conversations.public, NOT {WRITTEN_HERE}, ratings.value > 0, ratings.value < 0
    FROM ratings JOIN replies INDEXED BY replies_sources ON replies.id = ratings.reply_id
    JOIN conversations ON conversations.id = replies.conversation_id
    WHERE ratings.scope = :scope AND ratings.retracted = 0 AND ratings.kind = 'thumb' AND ratings.value <> 0
          AND ratings.updated_ms >= :since AND ratings.updated_ms < :whole_since
)"""


def counted_since(scope: str, since_ms: int) -> dict[str, str | int]:
    """Return the parameters of COUNTED for the thumbs of a scope since a moment."""
    first_whole_day = -(-since_ms // DAY_MS)
    return {
        "scope": scope,
        "since": since_ms,
        "first_whole_day": first_whole_day,
        "whole_since": first_whole_day * DAY_MS,
    }
