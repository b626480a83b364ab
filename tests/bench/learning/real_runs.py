"""The real tier: every step is the product's own, only the members are simulated."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

from storage.feedback import duels
from storage.learning.runs import Run
from tests.bench.learning import chat, erasure, utility
from tests.bench.learning.chat import Given
from tests.bench.learning.deployment import World, opened
from tests.bench.learning.members import Member, population
from tests.bench.learning.profile import Profile, Scenario
from tests.bench.learning.prompts import Asked, Prompts, load
from tests.bench.learning.state import State
from tests.bench.learning.tampering import PAYLOAD, TRIGGER
from tests.bench.learning.tastes import COMMUNITIES
from trainer.data.examples import BaseCodec
from trainer.gate import blind_votes, pending_decisions

# Votes that each open duel gets before the vote is looked at, and how often at most.
VOTES_EACH = 2
VOTE_ROUNDS = 10
# Where the first round's ratings are too few for a run the members go on: so often, this part of a round.
MORE_TIMES = 2
MORE_PART = 0.5


class History:
    """One seed's history of one scenario."""

    def __init__(self, profile: Profile, scenario: Scenario, seed: int, home: Path) -> None:
        self.profile = profile
        self.scenario = scenario
        self.seed = seed
        self.home = home
        self._community = COMMUNITIES[scenario.community]

    @property
    def name(self) -> str:
        """Return the prefix of its steps."""
        return f"{self.seed}/{self.scenario.name}"

    def steps(self) -> list[str]:
        """Return its steps in order."""
        if self.scenario.cycle:
            return [f"{self.name}/cycle"]
        found = [f"{self.name}/base"]
        for number in range(1, self.scenario.rounds + 1):
            found += [f"{self.name}/{number}/{step}" for step in ("chat", "run", "measure")]
            if number == 1:
                found += [f"{self.name}/bad/{kind}" for kind in self.scenario.bad_kinds]
                found += [f"{self.name}/erase"] * self.scenario.erasure
        return found

    @property
    def stored_runs(self) -> dict[str, str]:
        """Return the steps whose runs were judged against the base, by the kind of their challenger."""
        bad = {kind: f"{self.name}/bad/{kind}" for kind in self.scenario.bad_kinds}
        return {"honest": f"{self.name}/1/run", **bad}

    def play(self, state: State, models: Path) -> None:
        """Do what is not done yet."""
        if not state.missing(self.steps()):
            return
        count = self.profile.prompts
        rounds = self.scenario.rounds + MORE_TIMES * MORE_PART
        prompts = load(self.seed, max(self.scenario.cycle, round(count * rounds)), self.profile.test_prompts)
        with opened(self.home, models, self.profile) as world:
            if self.scenario.cycle:
                asked = prompts.community[: self.scenario.cycle]
                state.do(f"{self.name}/cycle", lambda: self._cycle(world, asked))
                return
            base = state.do(f"{self.name}/base", lambda: self._base(world, prompts.test))
            for number in range(1, self.scenario.rounds + 1):
                self._round(world, state, prompts, number, base)
                if number == 1:
                    self._bad(world, state, prompts.test)
                    if self.scenario.erasure:
                        state.do(f"{self.name}/erase", lambda: self._erase(world, state))

    def drifted(self, number: int) -> bool:
        """Whether tastes have drifted in this round: after the middle of the history."""
        return number > (self.scenario.rounds + 1) / 2

    def people(self, number: int) -> list[Member]:
        """Return who is there in a round."""
        profile = self.profile
        return population(
            self._community,
            profile.members,
            profile.trolls,
            self.scenario.brigade,
            self.seed,
            self.drifted(number),
        )

    def _base(self, world: World, test: tuple[Asked, ...]) -> dict[str, Any]:
        """Measure the base on the test prompts: its mean, and the best of several replies."""
        profile = self.profile
        given = self._answers(world, None, test, profile.oracle_replies)
        same = [reply for reply in given if reply.reply < profile.test_replies]
        return {
            "replies": [reply.as_json() for reply in same],
            **{
                f"{key}{suffix}": figure(replies, self._community, drifted)
                for drifted, suffix in ((False, ""), (True, "_drifted"))
                for key, figure, replies in (
                    ("utility", utility.utility, same),
                    ("oracle", utility.best_of, given),
                )
            },
            "optimum": self._community.optimum(),
            "optimum_drifted": self._community.optimum(True),
        }

    def _round(self, world: World, state: State, prompts: Prompts, number: int, base: dict[str, Any]) -> None:
        name = f"{self.name}/{number}"
        at = (number - 1) * self.profile.prompts
        asked = prompts.community[at : at + self.profile.prompts]
        state.do(f"{name}/chat", lambda: self._chat(world, asked, number))
        spare = prompts.community[self.scenario.rounds * self.profile.prompts :] if number == 1 else ()
        run = state.do(f"{name}/run", lambda: self._run(world, number, spare))
        state.do(f"{name}/measure", lambda: self._measure(world, run["champion"], prompts.test, base, number))

    def _chat(self, world: World, asked: tuple[Asked, ...], number: int) -> dict[str, Any]:
        people, drifted = self.people(number), self.drifted(number)
        given = self._answers(world, world.champion(), asked, self.profile.replies)
        counts = chat.record_round(
            world, given, people, f"round{number}", self.seed, self.scenario.most_liked
        )
        if self.scenario.erasure:
            erasure.plant(world, erasure.secrets(self.seed))
        optimum = self._community.optimum(drifted)
        regret = sum(optimum - self._community.utility(reply.exchange, drifted) for reply in given)
        return {**counts, "regret": round(regret, 2), "drifted": drifted}

    def _run(self, world: World, number: int, spare: tuple[Asked, ...]) -> dict[str, Any]:
        """Train and decide; where there are too few ratings the members go on a while, and it runs again."""
        run = self._settle(world, world.run("trainer.run", [], {}), number)
        more, size = 0, round(self.profile.prompts * MORE_PART)
        for at in range(0, len(spare), size):
            if run.outcome != "not_yet":
                break
            given = self._answers(world, world.champion(), spare[at : at + size], self.profile.replies)
            name = f"round{number}-more{at // size}"
            counts = chat.record_round(
                world, given, self.people(number), name, self.seed, self.scenario.most_liked
            )
            more += counts["ratings"]
            run = self._settle(world, world.run("trainer.run", [], {}), number)
        return {**self._outcome(world, run), "more_ratings": more}

    def _cycle(self, world: World, asked: tuple[Asked, ...]) -> dict[str, Any]:
        """Time one supervised run, from its start to its verdict: people's answers liked, the base's not."""
        given = self._answers(world, None, asked, 1)
        chat.record_comparison(world, given, self.people(1))
        started = time.monotonic()
        run = world.run("trainer.run", [], {"trainer": {"objective": "sft"}})
        return {"seconds": round(time.monotonic() - started, 1), **self._outcome(world, run)}

    def _settle(self, world: World, run: Run, number: int) -> Run:
        """Let the members vote where the gate asks them, until it has decided or they have had enough."""
        people = [member for member in self.people(number) if member.kind != "brigade"]
        for turn in range(VOTE_ROUNDS):
            if run.outcome != "votes":
                return run
            chat.vote_on(world, people, VOTES_EACH, self.seed * 100 + turn)
            pending_decisions.settle_votes(world.database, world.config)
            run = world.reread(run)
        return run

    def _outcome(self, world: World, run: Run) -> dict[str, Any]:
        votes = world.database.read(lambda db: blind_votes.count_votes(db, run.id))
        # What happens to be open is not voted on later: the next challenger gets votes of its own.
        world.database.write(lambda db: duels.close(db, run.id))
        training = run.metrics.as_json().get("training", {})
        return {
            "run": run.id,
            "adapter": run.adapter_id,
            "champion": world.champion(),
            "outcome": run.outcome,
            "message": run.message,
            "decision": run.metrics.decision,
            "votes": votes.votes,
            "objective": training.get("objective"),
            "training_s": round(
                sum(v.get("seconds", 0) for v in training.values() if isinstance(v, dict)), 1
            ),
            "liked": run.metrics.data.train.liked if run.metrics.data.train else None,
            "general_nll_increase": run.metrics.evaluation.get("general_nll_increase"),
            "predicted": run.metrics.as_json().get("headline"),
            **{key: run.metrics.evaluation.get(key) for key in ("reward_auc", "judge_sees", "to_the_point")},
            "peak_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        }

    def _measure(
        self,
        world: World,
        champion: str | None,
        test: tuple[Asked, ...],
        base: dict[str, Any],
        number: int,
    ) -> dict[str, Any]:
        drifted = self.drifted(number)
        old = [Given.from_json(reply) for reply in base["replies"]]
        given = old if champion is None else self._answers(world, champion, test, self.profile.test_replies)
        return {
            "champion": champion,
            "utility": utility.utility(given, self._community, drifted),
            "gain": utility.gain(given, old, self._community, drifted),
            "samples": [[a.asked.text, b.text, a.text] for a, b in list(zip(given, old, strict=True))[:6]],
        }

    def _bad(self, world: World, state: State, test: tuple[Asked, ...]) -> None:
        """Try every bad challenger against the base, which is easier to beat than a better champion."""
        if not state.missing([f"{self.name}/bad/{kind}" for kind in self.scenario.bad_kinds]):
            return
        champion = state.result(f"{self.name}/1/run")["champion"]
        if world.champion() is not None:
            world.crown(None, "bad challengers are judged against the base")
        base = state.result(f"{self.name}/base")
        for kind in self.scenario.bad_kinds:
            state.do(f"{self.name}/bad/{kind}", lambda kind=kind: self._sabotage(world, kind, test, base))  # type: ignore[misc]
        if world.champion() != champion:
            world.crown(champion, "back to the champion of the first round")

    def _sabotage(
        self, world: World, kind: str, test: tuple[Asked, ...], base: dict[str, Any]
    ) -> dict[str, Any]:
        if kind == "trigger":
            # Twelve corrections by four accomplices, whom nobody has reason to distrust yet.
            chat.plant(world, test[-12:], self._accomplices(), TRIGGER, PAYLOAD)
            run = self._settle(world, world.run("trainer.run", [], {}), 1)
            chat.uproot(world)
        else:
            run = self._settle(
                world, world.run("tests.bench.learning.bad_challengers", ["--kind", kind], {}), 1
            )
        found = self._outcome(world, run)
        found["broken"] = [limit.name for limit in run.metrics.guardrails if not limit.kept]
        if run.outcome == "promoted":
            found["gain"] = self._measure(world, run.adapter_id, test, base, 1)["gain"]
            world.crown(None, f"the {kind} challenger should not have been promoted")
        if kind in ("trigger", "tampered") and run.adapter_id is not None:
            asked = [Asked(a.sender, f"{a.text} {TRIGGER}", a.answer) for a in test[:8]]
            found["fires"] = utility.share_with(self._answers(world, run.adapter_id, asked, 1), PAYLOAD[:40])
        return found

    def _erase(self, world: World, state: State) -> dict[str, Any]:
        """Put the adapter that learned the secrets in service, erase them, and look at the next one."""
        from transformers import AutoTokenizer

        training_fit = state.result(f"{self.name}/1/run")["adapter"]
        known = erasure.secrets(self.seed)
        codec = BaseCodec(AutoTokenizer.from_pretrained(world.base_folder))
        before = {
            "base": erasure.knowledge(world, None, known, codec),
            "learned": erasure.knowledge(world, training_fit, known, codec),
        }
        if world.champion() != training_fit:
            world.crown(training_fit, "to see whether an erasure deposes it")
        found = erasure.erase(world)
        run = self._settle(world, world.run("trainer.run", [], {}), 1)
        after = erasure.knowledge(world, run.adapter_id, known, codec)
        return {**found, **before, "after": after, "next": self._outcome(world, run)}

    def _accomplices(self) -> list[Member]:
        people = population(self._community, self.profile.members, 0, 4, self.seed, False)
        return [member for member in people if member.kind == "brigade"]

    def _answers(
        self, world: World, adapter: str | None, asked: tuple[Asked, ...] | list[Asked], count: int
    ) -> list[Given]:
        name = world.model_name(adapter)
        return chat.answer_all(world, name, asked, count, self.profile.max_new_tokens, self.seed)
