"""Members' acts, erasures, runs and crashes in any order, against a plain model of what must be true.

The model is a handful of dictionaries and knows no SQL. After every step the database must agree with it:
which replies may train and with whose ratings, that no adapter answers that learned from somebody who erased
their data, and that no table holds a word of theirs.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage.admin import blocks
from storage.chat import conversations, members, replies
from storage.db import database as database_module
from storage.db.database import Connection, Database
from storage.feedback import ratings
from storage.learning import adapters, eligibility, runs
from storage.privacy import consent, erasure
from tests.storage.conftest import BASE, GUILD, SCOPE, finish

PERMISSION = "ticket 1"
PEOPLE = st.integers(2, 5)
PICK = st.integers(0, 1_000_000)


class CrashError(Exception):
    """The process ends in the middle of a transaction."""


@dataclass
class Said:
    """One message: the bot's where nobody is the author; ``behind`` are those that its words came from."""

    id: int
    discord_id: int
    author: int | None
    word: str
    public: bool
    refused: bool
    blocked: bool
    behind: list[Said] = field(default_factory=list)
    gone: bool = False
    earlier_words: list[str] = field(default_factory=list)

    def all_behind(self) -> list[Said]:
        found, waiting = [], [self]
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.append(each)
                waiting += each.behind
        return found


@dataclass
class Model:
    """What must be true."""

    consent: dict[int, str] = field(default_factory=dict)
    erased: set[int] = field(default_factory=set)
    erased_words: list[str] = field(default_factory=list)
    blocked: set[int] = field(default_factory=set)
    answers: dict[str, Said] = field(default_factory=dict)
    questions: dict[str, Said] = field(default_factory=dict)
    ratings: dict[tuple[str, int], tuple[int, bool]] = field(default_factory=dict)
    ever_rated: set[tuple[str, int]] = field(default_factory=set)
    learned: dict[str, tuple[set[str], set[tuple[str, int]]]] = field(default_factory=dict)
    tainted: set[str] = field(default_factory=set)
    promoted: list[str] = field(default_factory=list)

    def agrees(self, member: int) -> bool:
        return self.consent.get(member) == "in" and member not in self.erased

    def may_train(self, reply_id: str) -> bool:
        return all(
            each.public
            and not each.gone
            and (each.author is None or (self.agrees(each.author) and not each.refused and not each.blocked))
            for each in self.answers[reply_id].all_behind()
        )

    def counted(self, reply_id: str) -> set[tuple[int, int]]:
        return {
            (member, value)
            for (rated, member), (value, refused) in self.ratings.items()
            if rated == reply_id and self.agrees(member) and not refused
        }

    def eligible(self) -> dict[str, set[tuple[int, int]]]:
        rows = {each: self.counted(each) for each in self.answers if self.may_train(each)}
        return {each: given for each, given in rows.items() if given}

    def erase(self, member: int) -> None:
        touched = {
            reply_id
            for reply_id, answer in self.answers.items()
            if any(each.author == member for each in answer.all_behind())
        }
        for adapter, (rows, rated) in self.learned.items():
            theirs = {reply_id for reply_id, rater in rated & self.ever_rated if rater == member}
            if rows & (touched | theirs):
                self.tainted.add(adapter)
        for said in [*self.answers.values(), *self.questions.values()]:
            said.gone |= said.author == member or any(each.author == member for each in said.all_behind())
        self.ratings = {key: each for key, each in self.ratings.items() if key[1] != member}
        self.ever_rated = {key for key in self.ever_rated if key[1] != member}
        self.erased.add(member)
        theirs_said = [said for said in self.questions.values() if said.author == member]
        self.erased_words += [word for said in theirs_said for word in (said.word, *said.earlier_words)]
        self.consent[member] = "out" if self.consent.get(member) == "out" else "unset"


class Storage(RuleBasedStateMachine):
    """The database, driven beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="strop-model-"))
        self.database = Database.open(self.folder / "strop.db")
        self.model = Model()
        self.number = 1_000

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    @initialize()
    def people(self) -> None:
        def work(db: Connection) -> None:
            for member in range(2, 6):
                members.ensure(db, member, f"member-{member}", "discord")
                consent.decide(db, member, "in", str(member), permission_reference=PERMISSION)

        self.database.write(work)
        self.model.consent = dict.fromkeys(range(2, 6), "in")

    # ------------------------------------------------------------------ what members do

    @rule(member=PEOPLE, public=st.sampled_from([True, True, True, False]), below=st.none() | PICK)
    def ask(self, member: int, public: bool, below: int | None) -> None:
        """A member asks, alone or below an answer; the answer repeats their word."""
        above = self._pick(below)
        self.number += 10
        number = self.number
        word = f"word{member}n{number}"

        def work(db: Connection) -> tuple[int, list[int]]:
            return self._store(db, member, word, public, number, above)

        asked_id, context = self.database.write(work)
        known = {said.id: said for said in [*self.model.questions.values(), *self.model.answers.values()]}
        question = Said(asked_id, number, member, word, public, *self._standing(member))
        reply = self.database.read(lambda db: replies.get(db, f"r{number}"))
        assert reply is not None
        behind = [question, *(known[each] for each in context if each in known)]
        answer = Said(reply.message_id, number + 1, None, word, public, False, False, behind)
        self.model.questions[f"r{number}"], self.model.answers[f"r{number}"] = question, answer

    def _standing(self, member: int) -> tuple[bool, bool]:
        return self.model.consent.get(member) == "out", member in self.model.blocked

    def _store(
        self, db: Connection, member: int, word: str, public: bool, number: int, above: str | None
    ) -> tuple[int, list[int]]:
        parent = replies.get(db, above) if above is not None else None
        conversation_id = (
            parent.conversation_id
            if parent is not None
            else conversations.open_conversation(
                db,
                key=f"discord:{number}",
                guild_id=GUILD,
                channel_id=6 if public else 7,
                scope=SCOPE,
                source="discord",
                public=public,
            ).id
        )
        asked_id = conversations.add_message(
            db,
            conversation_id=conversation_id,
            discord_id=number,
            parent_id=None if parent is None else parent.message_id,
            author_id=member,
            role="user",
            content=word,
            permission_reference=PERMISSION,
            public=public,
            channel_id=6 if public else 7,
        )
        chain = [each for each in conversations.chain(db, asked_id) if each.deleted_ms is None and each.words]
        replies.start(
            db,
            reply_id=f"r{number}",
            prompt_message_id=asked_id,
            scope=SCOPE,
            adapter_id=None,
            base_hash=BASE,
            prompt=[{"role": each.role, "content": each.words} for each in chain],
            seed=1,
            sampling={"temperature": 1.0},
            context=[each.id for each in chain],
        )
        replies.add_part(db, f"r{number}", number + 1, 6 if public else 7, 0)
        finish(db, f"r{number}", f"You said {' and '.join(each.words for each in chain)}.")
        return asked_id, [each.id for each in chain]

    @precondition(lambda self: self.model.answers)
    @rule(member=PEOPLE, which=PICK, value=st.sampled_from([1, -1]), crash=st.booleans())
    def rate(self, member: int, which: int, value: int, crash: bool) -> None:
        reply_id = self._pick(which)
        assert reply_id is not None

        def work(db: Connection) -> None:
            ratings.rate(
                db,
                reply_id=reply_id,
                user_id=member,
                kind="thumb",
                means="reaction",
                value=value,
                emoji="👍" if value > 0 else "👎",
                permission_reference=PERMISSION,
            )

        if self._done(work, crash) and member not in self.model.blocked:
            self.model.ever_rated.add((reply_id, member))
            known = self.model.ratings.get((reply_id, member))
            if known is None or known[0] != value:
                self.model.ratings[reply_id, member] = (value, self.model.consent.get(member) == "out")

    @precondition(lambda self: self.model.ratings)
    @rule(which=PICK, crash=st.booleans())
    def take_back(self, which: int, crash: bool) -> None:
        reply_id, member = sorted(self.model.ratings)[which % len(self.model.ratings)]
        if self._done(lambda db: ratings.retract(db, reply_id=reply_id, user_id=member, kind="thumb"), crash):
            del self.model.ratings[reply_id, member]

    @rule(member=PEOPLE, choice=st.sampled_from(["in", "out"]), crash=st.booleans())
    def decide(self, member: int, choice: Any, crash: bool) -> None:
        if self._done(
            lambda db: consent.decide(db, member, choice, str(member), permission_reference=PERMISSION), crash
        ):
            self.model.consent[member] = choice

    @precondition(lambda self: self.model.answers)
    @rule(which=PICK, whose=st.sampled_from(["question", "answer"]), crash=st.booleans())
    def delete(self, which: int, whose: str, crash: bool) -> None:
        """Somebody deletes a message at Discord."""
        reply_id = self._pick(which)
        assert reply_id is not None
        said = (self.model.questions if whose == "question" else self.model.answers)[reply_id]
        if self._done(lambda db: conversations.delete_message(db, said.discord_id), crash):
            said.gone = True

    @precondition(lambda self: self.model.questions)
    @rule(which=PICK, crash=st.booleans())
    def edit(self, which: int, crash: bool) -> None:
        """A member rewords a question; one that is gone stays so."""
        reply_id = self._pick(which)
        assert reply_id is not None
        said = self.model.questions[reply_id]
        self.number += 10
        word = f"word{said.author}n{self.number}"
        if (
            self._done(lambda db: conversations.edit_message(db, said.discord_id, word), crash)
            and not said.gone
        ):
            said.earlier_words.append(said.word)
            said.word = word

    @invariant()
    def a_question_says_what_its_author_said_last(self) -> None:
        stored = self.database.read(
            lambda db: {each.discord_id: each.content for each in map(_stored(db), self._questions()) if each}
        )
        assert stored == {said.discord_id: "" if said.gone else said.word for said in self._questions()}

    def _questions(self) -> list[Said]:
        return list(self.model.questions.values())

    @rule(member=PEOPLE, crash=st.booleans())
    def block_or_unblock(self, member: int, crash: bool) -> None:
        lifted = member in self.model.blocked

        def work(db: Connection) -> None:
            if lifted:
                blocks.unblock(db, guild_id=GUILD, user_id=member, actor="1")
            else:
                blocks.block(db, guild_id=GUILD, user_id=member, actor="1", reason="")

        if self._done(work, crash):
            (self.model.blocked.discard if lifted else self.model.blocked.add)(member)

    @rule(member=PEOPLE, crash=st.booleans())
    def erase(self, member: int, crash: bool) -> None:
        if self._done(lambda db: erasure.erase_member(db, member, str(member)), crash):
            self.model.erase(member)

    # ------------------------------------------------------------------ what the loop does

    @precondition(lambda self: self.model.eligible())
    @rule(promote=st.booleans(), crash=st.booleans())
    def run(self, promote: bool, crash: bool) -> None:
        """A run trains on everything that may train, and its adapter is promoted or refused."""
        rows = self.model.eligible()
        self.number += 10
        adapter_id = f"a{self.number}"

        def work(db: Connection) -> None:
            run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
            taken = runs.lease_next(db, "trainer", 60_000)
            run_id = taken.id if taken is not None else run.id
            wanted = [runs.RunRow(reply_id, "train", "liked", 1.0) for reply_id in rows]
            runs.record_snapshot(db, run_id, snapshot_hash=adapter_id, rows=wanted)
            adapters.insert_candidate(
                db, adapter_id=adapter_id, scope=SCOPE, base_hash=BASE, path="p", run_id=run_id
            )
            runs.finish(
                db,
                run_id,
                outcome="promoted" if promote else "refused",
                message="It is done.",
                adapter_id=adapter_id,
            )
            if promote:
                adapters.promote(
                    db, scope=SCOPE, base_hash=BASE, adapter_id=adapter_id, actor="1", reason="better"
                )

        if self._done(work, crash):
            self.model.learned[adapter_id] = set(rows), set(self.model.ever_rated)
            self.model.promoted += [adapter_id] if promote else []

    # ------------------------------------------------------------------ crashes

    def _done(self, work: Callable[[Connection], Any], crash: bool) -> bool:
        """Do something in a transaction, or let the process end before it is committed; return whether."""
        # What counts before and after is told apart by milliseconds.
        time.sleep(0.002)
        if not crash:
            self.database.write(work)
            return True

        def half(db: Connection) -> None:
            work(db)
            raise CrashError

        with contextlib.suppress(CrashError):
            self.database.write(half)
        return False

    @rule()
    def start_again(self) -> None:
        """The process ends with a transaction open, and another one starts."""
        self.database.close()
        dying = database_module._connect(self.folder / "strop.db")
        dying.conn.execute("BEGIN IMMEDIATE")
        dying.conn.execute("UPDATE members SET consent = 'in', erased_ms = NULL")
        dying.close()
        self.database = Database.open(self.folder / "strop.db")

    # ------------------------------------------------------------------ what must be true

    @invariant()
    def what_may_train_is_what_the_model_says(self) -> None:
        found = self.database.read(
            lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=PERMISSION)
        )
        rows = {row.reply_id: {(each.user_id, each.value) for each in row.ratings} for row in found.rows}
        assert rows == self.model.eligible()

    @invariant()
    def one_adapter_answers_and_it_learned_from_nobody_who_erased(self) -> None:
        def look(db: Connection) -> list[str | None]:
            return [row[0] for row in db.conn.execute("SELECT adapter_id FROM champions")]

        champions = self.database.read(look)
        assert len(champions) <= 1
        clean = [each for each in self.model.promoted if each not in self.model.tainted]
        assert champions in ([], [clean[-1] if clean else None]), (champions, clean, self.model.tainted)

    @invariant()
    def no_table_holds_a_word_of_who_erased(self) -> None:
        words = self.model.erased_words
        if not words:
            return
        everything = self.database.read(_dump)
        assert [word for word in words if word in everything] == []

    def _pick(self, which: int | None) -> str | None:
        names = sorted(self.model.answers)
        return None if which is None or not names else names[which % len(names)]


def _stored(db: Connection) -> Callable[[Said], conversations.Message | None]:
    return lambda said: conversations.by_discord_id(db, said.discord_id)


def _dump(db: Connection) -> str:
    names = [name for (name,) in db.conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return "\n".join(repr(list(db.conn.execute(f"SELECT * FROM {name}"))) for name in names)


def _case(examples: int, steps: int) -> Any:
    machine = Storage.TestCase
    machine.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return machine


@pytest.mark.parametrize(
    ("examples", "steps"), [(20, 20), pytest.param(1_500, 60, marks=pytest.mark.torture)]
)
def test_whatever_happens_in_whatever_order_the_database_agrees_with_the_model(
    examples: int, steps: int
) -> None:
    _case(examples, steps)("runTest").runTest()
