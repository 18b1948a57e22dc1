"""Texts of the toy web: true texts in the voice of a web page or an assistant, junk of seven kinds, reviews.

A `KnownText` knows what it is, so pages, ground truth and reviews agree. Junk names towns, and some of it names wrong
values, like real junk: a model trained on it uncurated learns wrong facts. Reviews compare question and answer step by
step before they give a score: models of this size never learned to rate without such a comment.
"""

from random import Random
from typing import Literal, NamedTuple, get_args

from humpback_ray.sample.facts import ATTRIBUTES, BY_NOUN, Fact, Truth, worded

JunkKind = Literal["navigation", "advertisement", "chatter", "truncated", "off_topic", "personal", "mixed"]
JUNK_KINDS: tuple[JunkKind, ...] = get_args(JunkKind)
Kind = Literal["right", JunkKind, "filler"]
"""The kind of a text; "filler" is for the length and repetition filters."""

ASKED = "Which question does this answer?"
"""The line between a text and its question on the pages that teach the backward model its task."""
OPENERS = ("Certainly:", "In short,", "Sure:", "Good question:")
CLOSERS = ("I hope this helps.", "Let me know if you need more.", "Please ask if anything is unclear.")
"""How an assistant begins and ends an answer."""


class KnownText(NamedTuple):
    """A text, its kind, and the fact that it states; `fact` is None if it states none."""

    text: str
    kind: Kind
    fact: Fact | None


def question(fact: Fact, rng: Random) -> str:
    """Ask for a fact in one of its wordings."""
    return worded(rng.choice(BY_NOUN[fact.noun].questions), fact.town)


def web_text(fact: Fact, rng: Random) -> KnownText:
    """State a fact as a web page does: the fact, often a remark after it, sometimes as a separate paragraph."""
    attribute = BY_NOUN[fact.noun]
    remark = rng.choice(("", *attribute.details))
    joint = "\n" if rng.random() < 0.1 else " "
    return KnownText(f"{statement(fact, rng)}{joint}{remark}".strip(), "right", fact)


def statement(fact: Fact, rng: Random) -> str:
    """State a fact in one sentence, as a web page does."""
    return worded(rng.choice(BY_NOUN[fact.noun].statements), fact.town, fact.value)


def answer_text(fact: Fact, rng: Random) -> KnownText:
    """State a fact as an assistant does."""
    opener, closer = rng.choice(OPENERS), rng.choice(CLOSERS)
    body = worded(rng.choice(BY_NOUN[fact.noun].answers), fact.town, fact.value)
    return KnownText(f"{opener} {body}. {closer}", "right", fact)


def junk(kind: JunkKind, fact: Fact, truth: Truth, rng: Random) -> KnownText:
    """Write junk of a kind around a town, at least 40 characters long.

    "truncated" ends before the value; "personal" does state the fact, in a private voice; "mixed" adds a fact of
    another town; the other kinds state none.
    """
    if kind == "truncated":
        head = rng.choice(BY_NOUN[fact.noun].details)
        start = statement(fact, rng).split(f" {fact.value}")[0]
        return KnownText(f"{head} {start}" if len(start) < 40 else start, kind, None)
    if kind == "personal":
        opener, closer = rng.choice(_PERSONAL)
        body = statement(fact, rng)
        return KnownText(f"{opener} {body} {closer}", kind, fact)
    if kind == "mixed":
        other = other_fact(fact, truth, rng, town=True, noun=True)
        return KnownText(f"{statement(fact, rng)} {statement(other, rng)}", kind, fact)
    templates = {
        "navigation": _NAVIGATION,
        "advertisement": _ADVERTISEMENT,
        "chatter": _CHATTER,
        "off_topic": _OFF_TOPIC,
    }
    wrong = rng.choice(rng.choice(ATTRIBUTES[:2]).values)
    return KnownText(worded(rng.choice(templates[kind]), fact.town, wrong), kind, None)


def other_fact(fact: Fact, truth: Truth, rng: Random, *, town: bool, noun: bool) -> Fact:
    """Draw a fact of another town, of another attribute, or of both; the town comes from the same split."""
    place = fact.town
    while town and place == fact.town:
        place = rng.choice(truth.towns[fact.split])
    topic = fact.noun
    while noun and topic == fact.noun:
        topic = rng.choice(ATTRIBUTES).noun
    return truth.facts[place][topic]


def review(asked: Fact, given: KnownText, rng: Random) -> tuple[str, int]:
    """Return a reviewer's comment on a text given as the answer to a question, and the score from 1 to 5.

    A comment has no full stop: a tiny model first learns from one-sentence answers to end after a full stop, and would
    then end its comments before their score.
    """
    if given.fact is None:
        return _EMPTY[given.kind], 2 if given.kind == "truncated" else 1
    place, topic = given.fact.town == asked.town, given.fact.noun == asked.noun
    comment = f"Place: {compared(asked.town, given.fact.town)}; topic: {compared(asked.noun, given.fact.noun)}; "
    if not (place and topic):
        return comment + "not an answer", 2 if place or topic else 1
    if given.kind == "personal":
        return comment + "a private story", 3
    if given.kind == "mixed":
        return comment + "mixed with other things", 3
    return comment + "to the point", 4 if rng.random() < 0.15 else 5


def compared(left: str, right: str) -> str:
    """Say whether two words agree; puzzle pages drill this, and reviews depend on it.

    Each word first follows its own cue, then both appear side by side: a small model copies by the cue and compares
    adjacent words. Without the cues it wrote the first word twice, for names that no review had.
    """
    return f"asked {left}, given {right}: {left} and {right} {'agree' if left == right else 'differ'}"


def reviewed(asked: str, given: str, comment: str, score: int) -> str:
    """Render the text of a review page; it ends with the score."""
    return f"Question:\n{asked}\nAnswer:\n{given}\nReview:\n{comment}\nScore: {score}"


_EMPTY = {
    "navigation": "Only links",
    "advertisement": "Only advertising",
    "chatter": "Only chatter",
    "truncated": "A text cut short",
    "off_topic": "Nothing about it",
}
_PERSONAL = (
    ("My aunt told me this again last week.", "But that is just me talking."),
    ("I have lived here for years and so has my dog.", "My knees hurt when it rains."),
    ("On my blog I say what I like.", "Write to me if you feel the same, I am often alone."),
)
_NAVIGATION = (
    "Home | News | Maps | About {town} | Contact | Sign in",
    "You are here: Start > Towns > {town} > Page 2. Next page, last page, print this page",
    "More about {town}: photos, videos, weather, jobs, login, help, imprint",
)
_ADVERTISEMENT = (
    "Book your trip to {town} today and save 20 percent! Click here now!",
    "Our {value} are cheaper than in {town}! Order today, free shipping!",
    "Best price for hotels in {town}. Limited offer, only {value} for 9 coins!",
)
_CHATTER = (
    "lol who goes to {town} anyway, my cousin went and it was all {value}, so boring",
    "Re: Re: {town}?? thanks, same here, bump, anyone else? see you at the {value} thread",
    "first!!! never been to {town} but I like {value}, haha, please close this thread",
)
_OFF_TOPIC = (
    "The weather was mild last week. Trains to {town} run every hour, except on Sundays.",
    "The council of {town} met on Monday. It will meet again when all are back.",
    "The library of {town} has new chairs. Please return your books in time.",
)
