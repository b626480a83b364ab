"""What simulated members say. Two lists, so that a rehearsal says other things than the sample did.

Most are statements, as in a real community's chat: a small base model answers those briefly and sometimes
asks back, while a factual question makes it lecture.
"""

import json
from pathlib import Path

from bot.playground.errors import RehearsalError

MAX_FILE_BYTES = 4 * 1024 * 1024


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts from a file: one a line, or in a .jsonl file one JSON value a line.

    A JSON value is a text, or an object with a "prompt" or with "messages" whose first of the role "user" is
    taken. Empty lines and lines that begin with # are skipped, and so is what was there before. Raises
    RehearsalError.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RehearsalError(f"{path} is larger than {MAX_FILE_BYTES // 1024**2} MB.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RehearsalError(f"{path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RehearsalError(f"{path} is not a text file in UTF-8.") from error
    as_json = path.suffix.lower() in (".jsonl", ".ndjson")
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    found = [
        _from_json(path, number, line) if as_json else line
        for number, line in numbered
        if line and (as_json or not line.startswith("#"))
    ]
    return tuple(dict.fromkeys(found))


def _from_json(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
        if isinstance(value, dict):
            turns = value.get("messages") or []
            asked = [turn["content"] for turn in turns if turn.get("role") == "user"]
            value = value.get("prompt") or (asked[0] if asked else None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RehearsalError(f"{path}, line {number}: not JSON with a prompt in it.") from error
    if not isinstance(value, str) or not value.strip():
        raise RehearsalError(f'{path}, line {number}: needs a text, a "prompt" or "messages".')
    return value.strip()


SAMPLE_PROMPTS = (
    "I just moved to a new city and know nobody.",
    "I baked bread for the first time today!",
    "I'm thinking about getting a dog.",
    "Hi there!",
    "I had a long day at work.",
    "We're going to Portugal in May.",
    "I started to learn the guitar.",
    "My tomatoes are finally ripe.",
    "I can't sleep lately.",
    "I finished a great book last night.",
    "My brother is getting married.",
    "I want to paint my kitchen.",
    "I'm bored.",
    "I found an old camera in the attic.",
    "I ran five kilometres this morning.",
    "Guess what happened today!",
    "I have a job interview tomorrow and I'm nervous.",
    "It hasn't stopped raining for a week.",
    "My cat wakes me up at five every day.",
    "I'm trying to drink less coffee.",
    "We adopted a kitten.",
    "I lost my keys again.",
    "I'm planning a surprise party for my sister.",
    "I bought a bicycle.",
    "My neighbour plays loud music at night.",
    "I want to read more this year.",
    "I made soup from what was left in the fridge.",
    "Tomorrow is my first day at university.",
    "I'm learning Spanish.",
    "The train was late and I missed the concert.",
    "I got a plant from a friend and I'm afraid to kill it.",
    "My phone battery dies by noon.",
    "I saw a fox in the garden.",
    "I'm saving money for a trip.",
    "We played board games until midnight.",
    "I'd like to start meditating.",
    "I burned the pancakes.",
    "My daughter lost her first tooth.",
    "I'm writing a short story.",
    "I finally cleaned the garage.",
    "I'm on my way to the beach.",
    "My favourite team won yesterday.",
    "I feel a bit down today.",
    "I want to learn to swim.",
    "I repaired the old radio.",
    "We're having pizza tonight.",
    "I signed up for a dance class.",
    "I can't decide between tea and coffee.",
    "Good morning everyone!",
    "My grandmother turns ninety on Sunday.",
    "I keep procrastinating on my thesis.",
    "I watched the stars last night.",
    "What should I cook tonight?",
    "Can you recommend a hobby for long evenings?",
    "Help me pick a name for my cat.",
    "Where should I go on holiday?",
    "What's a good birthday present for a ten-year-old?",
    "How do I keep basil alive?",
    "Which instrument should I learn?",
    "Is it rude to leave a party early?",
    "What board game works for five people?",
    "How can I fall asleep faster?",
    "Why do cats purr?",
    "What should I read next?",
)

REHEARSAL_PROMPTS = (
    "I'm new here.",
    "I planted sunflowers on my balcony.",
    "I'm thinking about changing jobs.",
    "Hello, how is it going?",
    "I spent the whole weekend in bed.",
    "We're moving house next month.",
    "I started to draw again.",
    "My sourdough finally rose.",
    "I keep waking up at three.",
    "I just came out of the cinema.",
    "My best friend is having a baby.",
    "I want to build a bookshelf.",
    "Nothing ever happens in my town.",
    "I found a letter from my grandfather.",
    "I climbed a mountain today.",
    "You won't believe what I saw.",
    "I have to give a speech at a wedding.",
    "It's snowing outside.",
    "My dog is afraid of thunder.",
    "I'm trying to eat less sugar.",
    "We bought a tent.",
    "I forgot my best friend's birthday.",
    "I'm organising a picnic.",
    "I got new running shoes.",
    "My roommate never does the dishes.",
    "I want to watch fewer series.",
    "I cooked curry for eight people.",
    "Next week I start a new job.",
    "I'm learning to code.",
    "The museum was closed, so we went home.",
    "Somebody gave me a bonsai.",
    "My laptop fan is always loud.",
    "There's a hedgehog under my car.",
    "I'm saving up for a piano.",
    "We sang karaoke all night.",
    "I'd like to keep a diary.",
    "I dropped my lunch on the floor.",
    "My son learned to ride a bike.",
    "I'm making a photo album.",
    "I finally answered all my emails.",
    "I'm sitting in a café by the sea.",
    "My sister won a chess tournament.",
    "I feel really happy today.",
    "I want to learn to juggle.",
    "I fixed the squeaking door.",
    "We're making dumplings tonight.",
    "I joined a choir.",
    "I can't choose between the blue and the green wall.",
    "Good evening!",
    "My parents visit me tomorrow.",
    "I never finish the projects I start.",
    "I slept under the open sky.",
    "What could I bring to a potluck?",
    "Can you suggest a game for a long drive?",
    "Help me name my sailing boat.",
    "Where can I go for a weekend?",
    "What should I give my grandparents?",
    "How do I water a cactus?",
    "Which language should I learn?",
    "Is it fine to eat dessert first?",
    "What can we do when it rains?",
    "How can I get up earlier?",
    "Why do dogs tilt their heads?",
    "What should I plant first?",
)
