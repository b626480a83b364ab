"""What a member decides about training, and what follows at once from a refusal.

A refusal ends the votes that show the member's words, and a training run that has begun with them.
"""

import sqlite_utils

from storage.chat import members
from storage.feedback import duels, prompt_bank
from storage.learning import eligibility, runs
from storage.privacy import erasure
from storage.sentences import Sentence


def decide(
    db: sqlite_utils.Database,
    user_id: int,
    consent: members.Consent,
    actor: str,
    *,
    permission_reference: str,
) -> bool:
    """Record a member's decision about training; return whether it changed anything."""
    changed = members.set_consent(db, user_id, consent, actor)
    if changed and consent == "out":
        prompt_bank.remove_by_author(db, user_id)
        close_withdrawn(db, permission_reference)
        _begin_again_without(db, user_id, actor)
    return changed


def close_withdrawn(db: sqlite_utils.Database, permission_reference: str) -> int:
    """Close the open duels whose prompts may not be used any more; return how many there were."""
    open_duels = duels.open_prompts(db)
    allowed = eligibility.list_allowed_prompts(db, list(open_duels), permission_reference)
    withdrawn = [
        duel_id for reply_id, ids in open_duels.items() if reply_id not in allowed for duel_id in ids
    ]
    duels.withdraw(db, withdrawn)
    return len(withdrawn)


def _begin_again_without(db: sqlite_utils.Database, user_id: int, actor: str) -> None:
    """End the runs that are training on a member's words or ratings, and queue them anew."""
    training = [run for run in runs.list_running(db) if run.phase in ("snapshot", "train")]
    of_member = set(erasure.list_runs_of_member(db, user_id)) if training else set()
    reason = Sentence("A member opted out of training: the run starts again without their words.")
    for run in training:
        if run.id not in of_member:
            continue
        runs.cancel(db, run.id, actor, reason)
        runs.enqueue(
            db,
            scope=run.scope,
            trigger=run.trigger,
            requested_by=run.requested_by,
            settings=run.settings,
            report_channel_id=run.report_channel_id,
        )
