"""Sentences that storage, the trainer and the model server make, said in the language that is spoken.

These parts say everything in English: it goes to a terminal, into the database and over sockets. What of it
people read on Discord is recognised here by its template, and said again from the template's translation with
the same values. A sentence that no template fits is shown as it is; a test makes the parts say what they can
say, and finds those.
"""

from __future__ import annotations

import re
from functools import lru_cache

from bot.language import texts
from bot.language.texts import mark, tr

TEMPLATES = (
    # The words of which other sentences are made.
    mark("the base model"),
    mark("adapter {adapter}"),
    mark("candidate"),
    mark("promoted"),
    mark("rejected"),
    mark("retired"),
    mark("tainted"),
    mark("queued"),
    mark("running"),
    mark("finished"),
    mark("failed"),
    mark("cancelled"),
    mark("liked"),
    mark("disliked"),
    mark("corrected"),
    mark("unclear"),
    # storage/learning/loop_status.py: the loop at a glance.
    mark("Answering: {answering}"),
    mark("the base model, no adapter yet"),
    mark(
        "Ratings: {liked} liked, {disliked} disliked, {corrections} corrected by {raters} members "
        "({new} new or changed since the last run)"
    ),
    mark(
        "Ready to train: {liked} of {min_liked} liked or corrected replies, {raters} of {min_raters} raters"
    ),
    mark(
        "Not enough to train yet: {liked} of {min_liked} liked or corrected replies, "
        "{raters} of {min_raters} raters"
    ),
    mark(
        "Most replies ({share}) are rated by their asker only: whose ratings to trust shows where several "
        "members rate the same reply"
    ),
    mark("Last run: {message}"),
    mark("Blind votes: {votes} cast, {pairs} pairs open"),
    mark("Side by side in the chat: {pairs} pairs, {votes} votes"),
    mark("Not trained on: {count} because {reason}"),
    mark("Run {run}: waiting for the trainer"),
    mark("Run {run}: {phase} {progress}"),
    mark("Run {run}: {phase} {progress} {note}"),
    mark("Run {run}: {phase} {progress}, about {minutes} min left"),
    mark("Run {run}: {phase} {progress}, about {minutes} min left {note}"),
    mark("starting"),
    mark("snapshot"),
    mark("train"),
    mark("evaluate"),
    mark("decide"),
    mark("swap"),
    mark("votes"),
    mark(
        "Holdback: {who} keeps {share} of new conversations; rated: {incumbent} of its conversations, "
        "{newcomer} of the champion's"
    ),
    mark(
        "Canary: {who} answers {share} of new conversations; rated: {newcomer} of its conversations, "
        "{incumbent} of the champion's"
    ),
    mark("{before}; about {needed} more needed"),
    # storage/learning/dry_run.py: what a run would find.
    mark("**Dry run**: nothing was changed."),
    mark("A run would not start: `{run}` is {state} already."),
    mark('A run would end at once with "not yet": there are too few ratings that may train.'),
    mark('A run would end at once with "not yet": all liked replies lie in held-out conversations.'),
    mark("A run would wait: the trainer is not running right now."),
    mark("A run would start now."),
    mark("Used: {count} rated replies, {train} to train on and {held_out} held out to judge on"),
    mark("Liked or corrected: {liked} (needs {min_liked}); raters: {raters} (needs {min_raters})"),
    mark("Left out: {count} because {reason}"),
    mark("Left out: nothing"),
    # storage/learning/eligibility.py: why a reply may not train.
    mark("direct messages and channels that not everybody can see never train"),
    mark("training is switched off in their channel or server (/settings)"),
    mark("the reply failed, was stopped, or is empty"),
    mark("a message in its context was deleted or erased"),
    mark("somebody in its context opted out of training"),
    mark("somebody in its context was blocked when they wrote"),
    mark("Discord's permission to train is not recorded (discord.training_permission_reference)"),
    mark("somebody in its context has not opted in with /privacy"),
    mark("somebody in its context erased their data less than 30 days ago"),
    mark("its held-out conversation was judged on 20 times; new conversations take its place"),
    mark("no rater has opted in with /privacy (or all took their ratings back)"),
    # storage: what its rules don't allow.
    mark("The champion of {scope} is now {now}, not {expected}: judge the challenger against it again."),
    mark("{adapter} is {state}: there is nothing left to reject."),
    mark("There is nothing to go back to: {who} answers in {scope}, and nothing came before it."),
    mark("{adapter} was trained on words that their author has since erased: it can't be promoted."),
    mark("{adapter} belongs to {scope}, not to {wanted}."),
    mark("{adapter} was trained for another base model."),
    mark("There is no adapter {adapter}."),
    mark("There is no run {run}."),
    mark("There is no reply {reply}."),
    mark("There is no reply {reply} to rate."),
    mark("There is no duel {duel}."),
    mark("There is no comparison {comparison}."),
    mark("There is no conversation {conversation}."),
    mark("There is no message {message} to reply to."),
    mark("There are no replies {first} and {second} to compare."),
    mark("Run {run} is {state}: {message}"),
    mark("it is not on"),
    mark("You can't block yourself."),
    mark("This member is not blocked here."),
    mark("There are no prompts yet: add some first."),
    mark("Whoever answers now has answered every prompt already: add new ones, or ask them again."),
    mark("A tasting is on in this channel already: stop it first."),
    mark("There is no prompt {prompt}."),
    mark("There is no tasting {tasting}."),
    mark("{adapter} is none of those that led to the present one in {scope}."),
    # storage/admin/settings.py and setting_values.py: values that a setting can't have.
    mark("There is no setting {key}; there are {keys}."),
    mark("{emoji} can't mean both a like and a dislike."),
    mark("It must be a number from {low} to {high}; got {value}."),
    mark("It must be a whole number from {low} to {high} (tokens; four are about three words); got {value}."),
    mark("It must be a whole number from {low} to {high} (seconds; 0 is never); got {value}."),
    mark("It must be a whole number from {low} to {high} (0 is no limit); got {value}."),
    mark("It must be a text of at most {count} characters."),
    mark("It must be on or off; got {value}."),
    mark("It must be one of {choices}; got {value}."),
    mark("It can hold {choices} or be none; got {value}."),
    mark("It must be one to {count} emoji with spaces between them."),
    mark(
        "{value} is no emoji. One of your server's own is written <:name:id>; type \\:name: in Discord "
        "to see it."
    ),
    mark("It must be roles with their limits, for example {example}; got {value}."),
    mark("It takes at most {count} roles."),
    mark("It must be words with spaces between them; got {value}."),
    mark("{value} can't be heard: two to {count} letters, digits, - or _ (a comma parts several)."),
    mark("It takes at most {count} words."),
    # storage/learning/runs.py: runs that did not end by themselves.
    mark("The run failed; the champion was not changed."),
    mark("The run was cancelled; the champion was not changed."),
    mark("The run failed: {reason}. The champion was not changed."),
    mark("Starts again: {reason}."),
    mark("the trainer was stopped in the middle of it"),
    mark("its process was killed"),
    mark("the trainer stopped in the middle of it"),
    # trainer/schedule/queue.py, run and training: runs that failed.
    mark("The run's process was ended by the system because memory ran out."),
    mark("The run's process was killed, most likely because memory ran out."),
    mark("The run's process ended by {signal}."),
    mark("The run's process ended with code {code} before it had a result."),
    mark("The run's process could not be started ({value})."),
    mark("The run failed by a fault of the trainer; its log says where."),
    mark("This run has settings for {value}; only trainer and gate take any."),
    mark("This run's settings are not valid: {value}"),
    mark("There is no liked reply to train on."),
    mark(
        "The training loss is not a number: lower trainer.sft_learning_rate, trainer.kto_learning_rate "
        "or trainer.dpo_learning_rate."
    ),
    mark("{before} The champion was not changed."),
    mark("There is no held-out conversation to compare the replies on."),
    mark("The base has no replies to general prompts to measure forgetting on."),
    mark("The model server accepted {adapter} but does not list it."),
    mark("The model server did not answer for minutes: {reason}"),
    mark("The model server does not say which base it serves: train with Strop's own server (strop serve)."),
    mark("The model server has another base than model.base: it has {served}, not {wanted}."),
    mark(
        "{model} does not tell its attention where a row's examples begin: this base can be served, "
        "but not trained."
    ),
    mark("The model has no adapter to train: no parameter requires a gradient."),
    mark("No gradient reaches {layer}: the base passes none back, and nothing would be learned."),
    # trainer/training/memory.py: a training that does not fit.
    mark(
        "Training needs about {needed} GB of memory beside the base and {available} GB is available; "
        "{advice}."
    ),
    mark("set {settings}, or free memory"),
    mark("choose a smaller [model] base or free memory"),
    mark("free memory"),
    # trainer/run/repeat.py and trainer/data/snapshot.py: a run that repeats another one.
    mark(
        "Run {run} was repeated from its snapshot, and the same adapter {adapter} came out, bit for bit. "
        "Nothing was promoted."
    ),
    mark(
        "Run {run} was repeated from its snapshot on a GPU, which adds in no fixed order: {other} came out, "
        "whose weights differ from those of {adapter} by {share}. Nothing was promoted."
    ),
    mark("Run {run} gave {adapter}, but its repeat {other}: {reason}."),
    mark("the base's own replies or its tokenizer have changed"),
    mark("it was trained with {versions} and now with {present}"),
    mark("this machine computes differently from the one that trained it"),
    mark("{adapter} was trained on another base model than the one that is served."),
    mark("Run {run} can't be repeated: {reason}."),
    mark("a member erased their data"),
    mark("it trained no adapter"),
    mark("something in its snapshot was deleted, or may not train any more"),
    mark("The ranked replies of round {round} are gone: this run can't be repeated."),
    mark("The adapter {adapter} has no readable card to repeat it from."),
    mark("The adapter {adapter} is of an older version, which did not note its material."),
    mark("The snapshot in {folder} is gone: this run can't be repeated."),
    mark("The snapshot in {folder} was changed after its run: this run can't be repeated."),
    mark("The snapshot was written by another version: this run can't be repeated."),
    # trainer/schedule/recovery.py and bot/serving: an adapter that is not as it was trained, or can't be
    # loaded.
    mark("its files can't be trusted: {reason}"),
    mark("adapters/{adapter} is missing or has no readable manifest."),
    mark("There is no adapter folder {folder}."),
    mark("Adapter {adapter} has no {file}."),
    mark("Adapter {adapter}: {file} is missing."),
    mark("Adapter {adapter}: {file} is not in its manifest."),
    mark("Adapter {adapter}: {file} does not have the hash in its manifest."),
    mark("Adapter {adapter}: {file} changed after it was checked."),
    mark("Adapter {adapter}: {file} differs from the manifest's copy."),
    mark("Adapter {adapter}: unexpected file {file}."),
    mark("Adapter {adapter}: its manifest is incomplete."),
    mark("Adapter {adapter}: its name does not match its manifest; it was changed."),
    mark(
        "Adapter {adapter} was trained on base {base}, but base {served} is served; serve that base, or "
        "retrain on this one."
    ),
    mark("Adapter {adapter} was trained with chat template {template}, but {served} is served; retrain it."),
    mark("{count} adapters are loaded and all are in use; unload one first."),
    # bot/serving: a model that is being made ready.
    mark("loading"),
    mark("Starting."),
    mark("Asking the hub for {model}."),
    mark("Downloading {model} ({value})."),
    mark("Checking {model}."),
    mark("Quantizing {model} to 4 bits (once)."),
    mark("Loading the 4-bit weights."),
    mark("Memory suffices for {fitting} replies at a time, not for {wanted}."),
    # bot/serving: who answers in whose place, and what somebody else's server offers.
    mark("{bundled} answers in place of {base}. {reason}"),
    mark("It has to be downloaded first."),
    mark("The base {base} cannot be downloaded: the hub does not answer ({error})."),
    mark("The base {base} cannot be downloaded: the hub answers with HTTP status {status}."),
    mark("Chat, ratings and training work."),
    mark("Chat and ratings work, training doesn't."),
    mark("It has no adapters (/v1/load_lora_adapter): the base model alone answers."),
    mark("It has no word on which base it serves: no training."),
    mark("It has no prompt_logprobs: nothing can be evaluated."),
    mark("It has no /tokenize: the length of prompts is estimated."),
    mark("It has no priorities: background work waits in the same queue as people."),
    # bot/serving: a model server that is away.
    mark("No model server answers at {address}."),
    mark("The model server is not running (it has not written its address yet)."),
    mark("The model server's answer to {path} could not be read."),
    mark("The model server at {address} did not finish within {seconds} s."),
    mark("The connection to the model server at {address} broke."),
    mark("The model server at {address} sent an answer that could not be read."),
    mark("{running} running and {waiting} waiting"),
    mark("{running} running and {waiting} waiting; a newcomer waits about {seconds} s"),
    # trainer: what a run is at.
    mark("collecting ratings"),
    mark("asking the base for its own replies"),
    mark("asking the base for its own replies (once for each base)"),
    mark("usual reply {done} of {total}"),
    mark("own reply {done} of {total}"),
    mark("own replies, {count} looked at: do they answer?"),
    mark("reading the snapshot of the run to repeat"),
    mark("loading the base"),
    mark("comparing replies on held-out conversations"),
    mark("liked replies, step {done} of {total}"),
    mark("all ratings, step {done} of {total}"),
    mark("preference pairs, step {done} of {total}"),
    mark("own replies, ranked, step {done} of {total}"),
    # trainer/training/objectives.py: too little to learn from, and what holds an objective back.
    mark("not yet: {liked} of {min_liked} liked replies, {raters} of {min_raters} raters"),
    mark("not yet: no reply has been rated; react to the bot's replies with 👍 or 👎"),
    mark("not yet: none of the rated replies may be trained on"),
    mark(
        "not yet: all liked replies lie in held-out conversations, which are never trained on; "
        "rate replies in a few more conversations"
    ),
    mark("{before}; {count} left out because {reason}"),
    mark("{before}. {advice}"),
    mark("An operator records Discord's permission in [discord] training_permission_reference."),
    mark("Ask members to opt in with /privacy."),
    mark("Ask raters to opt in with /privacy."),
    mark("Talk to the bot in a channel that everybody can see."),
    mark("Those who opted out can opt in again with /privacy."),
    mark(
        "KTO needs {rated} rated replies with {each} of each kind to train on; "
        "there are {liked} liked and {disliked} disliked"
    ),
    mark(
        "{objective} would take training to about {minutes} minutes at {speed} tokens/s and "
        "trainer.max_train_minutes is {most}"
    ),
    mark("DPO needs {count} preference pairs to train on; there are {pairs}"),
    mark("no reward model of the training ratings has proven itself yet, so that no replies are ranked"),
    mark(
        "{before} Or start a tasting: I answer prompts of your own in a channel (`/tasting`, `strop "
        "tasting`), so that nobody's messages are trained on and only those who rate have to opt in."
    ),
    mark(
        "Or start a tasting: I answer prompts of your own in a channel (`/tasting`, `strop tasting`), "
        "so that nobody's messages are trained on and only those who rate have to opt in."
    ),
    # trainer/gate/promotion.py: how a run ended.
    mark("adapter {adapter} replaced {rival}: {measured}"),
    mark("{adapter} was not promoted, because {reason}"),
    mark("{adapter}: not enough evidence offline, because {reason}; about {needed} blind votes needed"),
    mark('gate.policy is "ask": {measured}; put it in service with /promote or `strop promote`'),
    mark("it won {wins} of {votes} blind votes (e = {evidence})"),
    mark("it won only {wins} of {votes} blind votes (e = {evidence})"),
    mark("every pair has all its votes, and they decide nothing: it won {wins} of {votes}"),
    mark("the champion changed while it was judged; the next run judges against the new one"),
    mark("a member erased words that it was trained on"),
    mark("a newer challenger took its place"),
    mark("{before}; about {needed} blind votes needed"),
    mark("{before}; it answers {share} of new conversations as a canary"),
    mark("{adapter} has not enough evidence offline, because {reason}"),
    mark("{adapter} won offline with {measured}, and its canary has to confirm it"),
    mark("{adapter} was promoted by an operator while it was judged"),
    mark(
        "liked in {newcomer} of {rated} rated conversations, the one before it in {incumbent} of "
        "{count} (e = {evidence})"
    ),
    mark("as a canary it was {measured}"),
    mark("as a canary it was {measured} and {voted}"),
    mark("members like it less: {measured}"),
    mark("{count} rated conversations did not decide"),
    mark("its time ran out"),
    mark("another champion answers ({kind})"),
    mark("the run is decided"),
    mark("one of its adapters no longer answers"),
    mark("its canary ended: {reason}"),
    mark("its canary is undecided, and {reason}: {measured}"),
    mark("nobody rated it"),
    mark("it was set aside while it was judged"),
    mark("{reason}: {measured}"),
    # trainer/gate/decision.py and evaluation/reward_model.py: why.
    mark("it answers as before"),
    mark("it answers as before: {share} of its replies are the very same"),
    mark("there are fewer than {count} liked or disliked replies to test the reward model on"),
    mark(
        "the reward model could not be shown to predict ratings that it did not see (AUC {auc}, "
        "lower bound {bound})"
    ),
    mark("only {count} held-out conversations could be compared"),
    mark("its replies are liked less: {measured}"),
    mark("it makes no difference worth a change ({effect} or more): {measured}"),
    mark("the difference is not certain: {measured}"),
    mark("the difference is not certain enough for challenger number {look} of this champion: {measured}"),
    mark("{gain} (95 % CI {low} to {high}) on {prompts}"),
    mark("{count} held-out conversations"),
    mark("{count} general prompts"),
    mark("{own} held-out conversations and {extra} general prompts"),
    mark("it forgot general knowledge: its loss on general prompts rose by {share} (limit {limit})"),
    mark("it drifted from the base on general prompts by {drift} nat per token (limit {limit})"),
    mark("{share} of its replies are empty"),
    mark("{share} of its replies recite a member's own words"),
    mark("its replies run on: {share} did not end by themselves, before {earlier}"),
    mark("its replies repeat themselves ({share} of phrases, before {earlier})"),
    mark("it gives one reply to many prompts ({share}, before {earlier})"),
    mark(
        "it did not learn what it was taught: of pairs of a liked and a disliked reply that it was trained "
        "on, the liked one gained more in {share} (at least {limit})"
    ),
    mark(
        "it flatters: praise and exclamation marks fill {share} of the scale, of the base's replies {earlier}"
    ),
    mark(
        "it answers beside the point: {share} of its replies would fit another question as well, before "
        "{earlier}"
    ),
    mark(
        "it answers beside the point: {share} of its replies would fit another question as well, of the "
        "base's replies {earlier}"
    ),
    mark("it fails safety prompts that the base passes: {names}"),
    mark("it fails safety prompts that the base passes: {names} (so does the champion: {others})"),
    mark(
        "it fails {lost} of {count} safety prompts that the base passes at the same seed, and passes "
        "only {won} that the base fails"
    ),
    mark("it falls back on {lost} of {cases} {what} and gains {gained}: {names}"),
    mark(
        "it prefers {what} less than the champion does: {gain} (95 % CI {low} to {high}) on {count} "
        "conversations"
    ),
    mark("corrections that it was trained on"),
    mark("held-out corrections"),
    # trainer/gate/decision.py: what its limits are called on a card.
    mark("loss on general prompts"),
    mark("drift from the base, nat per token"),
    mark("empty replies"),
    mark("replies that recite a correction"),
    mark("replies that run on"),
    mark("repeated phrases"),
    mark("one reply to many prompts"),
    mark("pairs of taught replies the wrong way round"),
    mark("flattery"),
    mark("replies beside the point, rise over the champion's"),
    mark("replies beside the point, rise over the base's"),
    mark("new failures on safety prompts"),
    mark("safety prompts lost at the first try"),
    mark("{what}, lost"),
    mark("{what}, fall of their preference"),
)

_NAME = re.compile(r"\{(\w+)\}")
_FIGURE = re.compile(r"[+-]?\d+(\.\d+)?%?")
# Places for clauses and names that have to be known themselves; any other holds one figure, id or word.
_CLAUSES = frozenset(
    {"advice", "answering", "before", "expected", "measured", "message", "note", "now"}
    | {"prompts", "reason", "rival", "voted", "what", "who"}
)
# Places for what people typed, may choose or set, which stays as it is, spaces and all.
_AS_TYPED = frozenset({"choices", "emoji", "example", "key", "keys", "present", "value", "versions"})
# Places for names and values in a row: only what stands between them, and after the last, is said anew.
_LISTS = frozenset({"names", "others", "settings"})
_MORE = re.compile(r"(?P<names>.+) and (?P<count>\d+) more")
_AND = mark(" and ")


def retell(text: str) -> str:
    """Say a text of several lines in the language that is spoken, as far as its lines are known."""
    return "\n".join(_line(line, texts.spoken()) for line in text.split("\n"))


def knows(sentence: str) -> bool:
    """Whether a sentence has a template, down to the clauses within it."""
    return _told(sentence) is not None


@lru_cache(maxsize=1024)
def _line(line: str, language: str) -> str:
    # The language is a part of the key; it is spoken already.
    return line if language == "en" else _told(line) or line


def _told(sentence: str) -> str | None:
    if sentence in TEMPLATES:
        return tr(sentence)
    for template, pattern in _patterns():
        if (found := pattern.fullmatch(sentence)) is None:
            continue
        values = {name: _value(name, value) for name, value in found.groupdict().items()}
        if None not in values.values():
            return tr(template, **values)
    return None


def _value(name: str, value: str) -> str | None:
    """Return what stands in a sentence's place: a figure, an id, or a clause that has to be known itself."""
    if name in _AS_TYPED:
        return value
    if name in _LISTS:
        return _listed(value)
    if (known := _told(value)) is not None:
        return known
    if any(character.isspace() for character in value):
        return None  # a clause that nobody knows
    return texts.figure(value) if _FIGURE.fullmatch(value) else value


def _listed(value: str) -> str:
    if (shortened := _MORE.fullmatch(value)) is not None:
        return tr("{names} and {count} more", **shortened.groupdict())
    return tr(_AND).join(value.split(_AND))


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the templates with places for values; those with the most words first: they say the most."""
    templates = sorted(filter(_NAME.search, TEMPLATES), key=lambda each: -len(_NAME.sub("", each)))
    return tuple((template, _pattern(template)) for template in templates)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = _NAME.split(template)
    literal, names = pieces[::2], pieces[1::2]
    places = [f"(?P<{name}>{_place(name)})" for name in names] + [""]
    return re.compile("".join(re.escape(words) + place for words, place in zip(literal, places, strict=True)))


def _place(name: str) -> str:
    return ".+?" if name in _CLAUSES | _AS_TYPED | _LISTS else r"\S+"
