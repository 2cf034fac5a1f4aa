"""What can be said in the spoken world: words, sentence templates, and their split into train, dev and test.

Everything about one combination of words (a "big red cow", "the girl, two, cups") is in one split only: its questions,
their answers and its statements. So no sentence and no question of dev or test occurs in train, while every word does.
Answers begin with "the": the first audio chunk of an answer is spoken when only one word of it is written.
"""

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Animal:
    """An animal and what the world knows about it."""

    name: str
    home: str
    food: str
    act: str


@dataclass(frozen=True)
class Lexicon:
    """Words of a world; `held_out` gives dev and test combinations of each kind of sentence."""

    sizes: tuple[str, ...]
    colours: tuple[str, ...]
    animals: tuple[Animal, ...]
    facts: tuple[Literal["home", "food", "act"], ...]
    people: tuple[str, ...]
    counts: tuple[int, ...]  # how many a story begins with
    things: tuple[str, ...]
    gains: tuple[str, ...]  # ways to come by one more
    views: tuple[str, ...]  # what people do to animals in statements
    train_statements: int
    held_out: dict[Literal["fact", "story", "statement"], tuple[int, int]]


FULL = Lexicon(
    sizes=("big", "small", "old", "lazy", "happy"),
    colours=("red", "green", "yellow", "purple", "white", "blue"),
    animals=(
        Animal("cow", "barn", "grass", "walks"),
        Animal("horse", "barn", "carrots", "jumps"),
        Animal("rabbit", "garden", "carrots", "jumps"),
        Animal("lizard", "garden", "flies", "climbs"),
        Animal("monkey", "forest", "bananas", "climbs"),
        Animal("tiger", "forest", "meat", "jumps"),
        Animal("dolphin", "river", "salmon", "swims"),
        Animal("turtle", "river", "grass", "swims"),
        Animal("elephant", "desert", "bananas", "walks"),
        Animal("camel", "desert", "grass", "walks"),
    ),
    facts=("home", "food", "act"),
    people=("girl", "boy", "teacher", "doctor", "sailor"),
    counts=(2, 3, 4, 5, 6, 7, 8),
    things=("cups", "apples", "books", "pencils", "flowers", "tickets", "bottles"),
    gains=("buys", "finds", "makes"),
    views=("sees", "likes"),
    train_statements=300,
    held_out={"fact": (18, 62), "story": (16, 42), "statement": (20, 90)},
)

SMOKE = Lexicon(
    sizes=("big", "small"),
    colours=("red", "yellow", "purple"),
    animals=(
        Animal("cow", "barn", "grass", "walks"),
        Animal("rabbit", "garden", "carrots", "jumps"),
        Animal("monkey", "forest", "bananas", "climbs"),
        Animal("dolphin", "river", "salmon", "swims"),
    ),
    facts=("home", "food"),
    people=("girl", "teacher", "doctor"),
    counts=(2, 3, 4, 5),
    things=("cups", "apples", "pencils", "tickets"),
    gains=("buys",),
    views=("sees",),
    train_statements=20,
    held_out={"fact": (2, 4), "story": (3, 8), "statement": (2, 4)},
)

LEXICONS = {"full": FULL, "smoke": SMOKE}


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, as they are written and spoken."""

    question: str
    answer: str


@dataclass(frozen=True)
class SplitSentences:
    """All text of one split, in a fixed order, without repeats."""

    exchanges: tuple[Exchange, ...]
    statements: tuple[str, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(exchange.answer for exchange in self.exchanges))

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(exchange.question for exchange in self.exchanges)


def fact_exchange(fact: str, size: str, colour: str, animal: Animal) -> Exchange:
    """A question about an animal and its answer."""
    subject = f"the {size} {colour} {animal.name}"
    if fact == "home":
        return Exchange(f"where does {subject} live", f"{subject} lives in the {animal.home}")
    if fact == "food":
        return Exchange(f"what does {subject} want", f"{subject} wants {animal.food}")
    if fact == "act":
        return Exchange(f"what does {subject} do", f"{subject} {animal.act}")
    raise ValueError(f"no fact is called '{fact}'")


def story_exchange(person: str, count: int, thing: str, gain: str) -> Exchange:
    """A number story and its outcome, one more than before."""
    before, after = NUMBERS[count - 1], NUMBERS[count]
    return Exchange(f"the {person} has {before} {thing} and {gain} one more", f"the {person} has {after} {thing}")


def split_sentences(lexicon: Lexicon, seed: int) -> dict[Split, SplitSentences]:
    """Draws which combinations are train, dev and test, and writes out their sentences; the same seed, the same split."""
    rng = random.Random(f"spoken world {seed}")
    facts = _split(
        itertools.product(lexicon.sizes, lexicon.colours, lexicon.animals), lexicon.held_out["fact"], None, rng
    )
    stories = _split(
        itertools.product(lexicon.people, lexicon.counts, lexicon.things), lexicon.held_out["story"], None, rng
    )
    views = _split(
        itertools.product(lexicon.people, lexicon.views, lexicon.sizes, lexicon.animals),
        lexicon.held_out["statement"],
        lexicon.train_statements,
        rng,
    )
    sentences: dict[Split, SplitSentences] = {}
    for split in SPLITS:
        exchanges = [fact_exchange(fact, *combination) for combination in facts[split] for fact in lexicon.facts]
        exchanges += [story_exchange(*combination, gain) for combination in stories[split] for gain in lexicon.gains]
        rng.shuffle(exchanges)
        statements = [f"the {person} {view} the {size} {animal.name}" for person, view, size, animal in views[split]]
        sentences[split] = SplitSentences(tuple(exchanges), tuple(statements))
    return sentences


def _split(
    combinations: Iterable[T], held_out: tuple[int, int], most_train: int | None, rng: random.Random
) -> dict[Split, list[T]]:
    drawn = list(combinations)
    rng.shuffle(drawn)
    dev, test = held_out
    return {"dev": drawn[:dev], "test": drawn[dev : dev + test], "train": drawn[dev + test :][:most_train]}


def vocabulary(lexicon: Lexicon) -> tuple[str, ...]:
    """Every word of the world, sorted."""
    words = {"the", "where", "does", "what", "has", "and", "one", "more"}
    words |= {*lexicon.sizes, *lexicon.colours, *lexicon.people, *lexicon.things, *lexicon.gains, *lexicon.views}
    words |= {NUMBERS[count + more] for count in lexicon.counts for more in (-1, 0)}
    words |= {animal.name for animal in lexicon.animals}
    if "home" in lexicon.facts:
        words |= {"live", "lives", "in"} | {animal.home for animal in lexicon.animals}
    if "food" in lexicon.facts:
        words |= {"want", "wants"} | {animal.food for animal in lexicon.animals}
    if "act" in lexicon.facts:
        words |= {"do"} | {animal.act for animal in lexicon.animals}
    return tuple(sorted(words))
