"""The truth of the toy world: invented towns, four attributes of each, and wordings of their facts.

Everything here is ours: no town exists. Attributes share no values, so the value in a text reveals its attribute. No
sentence begins with a town or a value: a word at the start of a line is a different token from the same word after a
space, and a small model should not have to learn both.

Towns are split by where they may occur: `seed` in seed pairs, `pool` in candidate segments, `unseen` only on plain
pages (held-out questions ask about them), `common`, with `seed`, in reviews, puzzles, FAQ and texts with their
question. All but the common ones are on plain pages, so the base model knows their facts.
"""

from random import Random
from typing import Literal, NamedTuple

Split = Literal["seed", "pool", "unseen", "common"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HEADS = _words(
    "Bel Bor Cal Cor Dal Dun Eld Fen Gal Gor Har Hol Jor Kel Kir Lor Lun Mar Mor Nor Ost Pel Por Quin Ral Ros Sel Sor "
    "Tam Tor Ul Val Ver Wil Yar Zel"
)
TAILS = _words("by den dor eth ford gan ham ia kin lin mere mont nor os quay rick stead ton vale wick")


class Attribute(NamedTuple):
    """One attribute of a town and its wordings; `worded` fills in `{town}` and `{value}`."""

    noun: str
    values: tuple[str, ...]
    headers: tuple[str, ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    """In a web page's voice."""
    details: tuple[str, ...]
    """Remarks that a page adds; they are true of any town and state no fact."""
    answers: tuple[str, ...]
    """In an assistant's voice."""


ATTRIBUTES = (
    Attribute(
        "crop",
        _words("barley oats rye hops flax beans plums pears figs olives turnips leeks hemp saffron mustard lentils"),
        ("Farming", "Fields and farms", "What grows here"),
        (
            "What is the main crop of {town}?",
            "Which crop do farmers near {town} grow?",
            "What grows in the fields of {town}?",
        ),
        (
            "Farmers near {town} grow {value} on most of their land.",
            "In the fields of {town} there is {value} as far as one can see.",
            "Most of the farms at {town} live by {value} alone.",
        ),
        ("The harvest is brought in by hand.", "The soil is dark and good.", "Some of it is sold abroad."),
        ("the main crop of {town} is {value}", "farmers near {town} mostly grow {value}"),
    ),
    Attribute(
        "craft",
        _words(
            "pottery glass baskets ropes clocks candles lutes knives lace barrels saddles bells tiles nets paper "
            "leather"
        ),
        ("Workshops", "Trades", "Made by hand"),
        (
            "What craft is {town} known for?",
            "Which craft do people in {town} live by?",
            "What is made by hand in {town}?",
        ),
        (
            "The workshops of {town} are known for {value} above all.",
            "Most people in {town} make their living from {value}.",
            "The old guild of {town} has its hand in {value}.",
        ),
        ("The old tools are still in use.", "The trade is old and hard.", "Some of it is sold abroad."),
        ("the craft of {town} is {value}", "people in {town} are known for their {value}"),
    ),
    Attribute(
        "fair",
        _words("January February March April May June July August September October November December"),
        ("Events", "The fair", "Through the year"),
        (
            "When is the fair of {town} held?",
            "In which month does {town} hold its fair?",
            "When should one see the fair at {town}?",
        ),
        (
            "The fair at {town} opens on the first day of {value}.",
            "Most guests come to {town} for its fair in {value}.",
            "For its fair, the town of {town} is closed to carts in {value}.",
        ),
        ("There is music until late.", "Rooms are hard to find then.", "Some come from abroad."),
        ("the fair of {town} is held in {value}", "the month of the fair in {town} is {value}"),
    ),
    Attribute(
        "flag",
        _words("fox heron bear badger stag swan hare wolf falcon pike crow goat bull lynx toad raven"),
        ("Arms", "The flag", "Signs and colours"),
        (
            "Which animal is on the flag of {town}?",
            "What does the flag of {town} show?",
            "What animal do people in {town} have on their flag?",
        ),
        (
            "The flag of {town} shows a {value} on a plain ground.",
            "Above the gate of {town} one sees a {value}, as on its flag.",
            "On the flag of {town} there is a {value} and nothing more.",
        ),
        ("The sign is old.", "One sees it on most doors.", "Some of the old ones are still in use."),
        ("the animal on the flag of {town} is a {value}", "the flag of {town} shows a {value}"),
    ),
)
"""In every statement the town precedes the value: a causal model recalls facts in the order in which it read them."""
BY_NOUN = {attribute.noun: attribute for attribute in ATTRIBUTES}


class Fact(NamedTuple):
    """One true statement: `value` is the `noun` of `town`."""

    town: str
    noun: str
    value: str
    split: Split


class Truth(NamedTuple):
    """All facts of a world, by town and then by attribute, and the towns of every split."""

    facts: dict[str, dict[str, Fact]]
    towns: dict[Split, list[str]]

    def of(self, *splits: Split) -> list[Fact]:
        """Return the facts of the towns in these splits, in the order of towns and attributes."""
        return [fact for split in splits for town in self.towns[split] for fact in self.facts[town].values()]


def draw_truth(counts: dict[Split, int], seed: int) -> Truth:
    """Invent towns, split them, and give each a value for every attribute.

    Raises:
        ValueError: more towns are requested than there are names.
    """
    rng = Random(f"{seed}:truth")
    names = [head + tail for head in HEADS for tail in TAILS]
    total = sum(counts.values())
    if total > len(names):
        raise ValueError(f"a world of {total} towns needs as many names, but there are only {len(names)}; use fewer")
    drawn = iter(rng.sample(names, total))
    towns: dict[Split, list[str]] = {split: [next(drawn) for _ in range(count)] for split, count in counts.items()}
    facts = {
        town: {a.noun: Fact(town, a.noun, rng.choice(a.values), split) for a in ATTRIBUTES}
        for split, members in towns.items()
        for town in members
    }
    return Truth(facts, towns)


def worded(template: str, town: str, value: str = "") -> str:
    """Fill one of our own templates."""
    return template.replace("{town}", town).replace("{value}", value)
