"""Pages about the towns: those that become candidates, those that teach the base model, and the review pages.

Each kind has its own towns (see facts.py). Sections about `pool` towns are the corpus to augment. FAQ, reviews and
texts followed by their question are only about `common` and `seed` towns: if a model can do the same for another town,
it has understood the task, not memorized it. Plain pages are about all towns but the common ones and have no headers,
so they give no candidates.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

from humpback_ray.sample.facts import BY_NOUN, Fact, Truth
from humpback_ray.sample.pages import Page, PageKind, PageSection
from humpback_ray.sample.texts import (
    ASKED,
    JUNK_KINDS,
    JunkKind,
    KnownText,
    answer_text,
    compared,
    junk,
    other_fact,
    question,
    review,
    reviewed,
    statement,
    web_text,
)

SITE = "https://towns.example"
NEUTRAL_HEADERS = ("News", "More", "Good to know", "Around town", "Talk of the town", "What people say", "Notes")
FURNITURE_HEADERS = ("", "NOTICE BOARD", "Forum", "Advertisement", "Quick links", "Free newsletter")

Reviewed = Literal["right", "other_topic", "other_place", "other_both", JunkKind]
REVIEW_SHARES: dict[Reviewed, float] = {
    "right": 0.36,
    "other_topic": 0.16,
    "other_place": 0.24,
    "other_both": 0.04,
    "truncated": 0.04,
    "personal": 0.04,
    "mixed": 0.04,
    "navigation": 0.02,
    "advertisement": 0.02,
    "chatter": 0.02,
    "off_topic": 0.02,
}
"""Shares of the kinds of reviewed answers. Wrong answers are drawn like right ones, so no town reveals its rating."""


def plain_page(truth: Truth, towns: Sequence[str], rng: Random) -> Page:
    """State all facts of one town, as prose or as a gazetteer, without a header."""
    facts = list(truth.facts[rng.choice(towns)].values())
    rng.shuffle(facts)
    if rng.random() < 0.5:
        entries = "; ".join(f"{fact.noun} of {fact.town}: {fact.value}" for fact in facts)
        return _page("plain", rng, (f"Gazetteer. {entries}",))
    return _page("plain", rng, (" ".join(statement(fact, rng) for fact in facts),))


def faq_page(facts: Sequence[Fact], rng: Random) -> Page:
    """Answer one question below it, in a web page's voice."""
    fact = rng.choice(facts)
    return _page("faq", rng, sections=(PageSection(question(fact, rng), web_text(fact, rng)),))


def asked_page(facts: Sequence[Fact], rng: Random) -> Page:
    """Put a question below the text that answers it."""
    fact = rng.choice(facts)
    return _page("asked", rng, (*web_text(fact, rng).text.split("\n"), ASKED, question(fact, rng)))


def review_page(truth: Truth, facts: Sequence[Fact], rng: Random) -> Page:
    """Review an answer to a question: comment, then score."""
    asked = rng.choice(facts)
    kind = rng.choices(list(REVIEW_SHARES), list(REVIEW_SHARES.values()))[0]
    given = reviewable(asked, kind, truth, rng)
    text = reviewed(question(asked, rng), given.text, *review(asked, given, rng))
    return _page("review", rng, tuple(text.split("\n")))


def puzzle_page(facts: Sequence[Fact], rng: Random) -> Page:
    """Compare words pair by pair, like a page of puzzles for children."""
    lines = []
    for _ in range(5):
        left, right = rng.choice(facts), rng.choice(facts)
        column = rng.choice((0, 0, 2))  # towns or values
        lines.append(compared(left[column], (left if rng.random() < 0.5 else right)[column]))
    return _page("puzzle", rng, (". ".join(lines) + ".",))


def junk_page(truth: Truth, facts: Sequence[Fact], rng: Random) -> Page:
    """Fill a page with one piece of junk, without a header."""
    return _page("junk", rng, (junk(rng.choice(JUNK_KINDS), rng.choice(facts), truth, rng).text,))


def reviewable(asked: Fact, kind: Reviewed, truth: Truth, rng: Random, assistant_share: float = 0.3) -> KnownText:
    """Give an answer of a kind of `REVIEW_SHARES` to the question for a fact."""
    if kind == "right" or kind == "other_topic" or kind == "other_place" or kind == "other_both":
        fact = asked
        if kind != "right":
            fact = other_fact(asked, truth, rng, town=kind != "other_topic", noun=kind != "other_place")
        return answer_text(fact, rng) if rng.random() < assistant_share else web_text(fact, rng)
    about = asked
    if rng.random() < 0.3:
        about = other_fact(asked, truth, rng, town=rng.random() < 0.5, noun=True)
    return junk(kind, about, truth, rng)


def town_pages(truth: Truth, rng: Random, fact_share: float, junk_per_fact: float) -> Iterator[Page]:
    """Yield two pages for every pool town: sections that answer a question, and sections of junk about the town."""
    for town in truth.towns["pool"]:
        facts = list(truth.facts[town].values())
        sections = [_good_section(fact, rng) for fact in facts for _ in range(2) if rng.random() < fact_share]
        wanted = sum(rng.random() < junk_per_fact for _ in 2 * facts)
        sections += [_junk_section(rng.choice(facts), truth, rng) for _ in range(wanted)]
        rng.shuffle(sections)
        half = len(sections) // 2
        for part in (sections[:half], sections[half:]):
            if part:
                page = _page("town", rng, sections=tuple(part), title=f"About {town}")
                whole = len(page.plain()) > 640  # then the page as a whole is too long and its sections become segments
                yield page._replace(heading=f"All about {town}") if whole else page


def _good_section(fact: Fact, rng: Random) -> PageSection:
    header = rng.choice(FURNITURE_HEADERS) if rng.random() < 0.04 else rng.choice(BY_NOUN[fact.noun].headers)
    text = web_text(fact, rng)
    below = rng.choice(BY_NOUN[fact.noun].details) if rng.random() < 0.05 else None
    return PageSection(header, text, ("In short", below) if below else None)


def _junk_section(fact: Fact, truth: Truth, rng: Random) -> PageSection:
    """Put junk under a neutral header, one of a real section, or one of site navigation."""
    chance = rng.random()
    headers = BY_NOUN[fact.noun].headers if chance < 0.4 else NEUTRAL_HEADERS if chance < 0.85 else FURNITURE_HEADERS
    return PageSection(rng.choice(headers), junk(rng.choice(JUNK_KINDS), fact, truth, rng))


def awkward_pages(truth: Truth, rng: Random) -> Iterator[Page]:
    """Yield pages for the filters: sections too short, too long and repetitive, and a page without text."""
    facts = truth.of("pool")
    for fact in rng.sample(facts, 6):
        once = statement(fact, rng)
        texts = (
            "Soon more.",
            " ".join([once] * 4),
            "\n".join(junk("off_topic", other, truth, rng).text for other in facts[:12]),
        )
        sections = tuple(PageSection(rng.choice(NEUTRAL_HEADERS), KnownText(text, "filler", None)) for text in texts)
        yield _page("town", rng, sections=sections)
    yield _page("junk", rng)


def mirrors(pages: Sequence[Page], rng: Random) -> Iterator[Page]:
    """Yield copies of some pages at other URLs: half of them exact, half with extra last words."""
    for index, page in enumerate(rng.sample([page for page in pages if page.kind == "town"], 12)):
        sections = page.sections
        if index % 2:
            sections = tuple(
                s._replace(content=s.content._replace(text=s.content.text + " Read on.")) for s in sections
            )
        yield page._replace(url=page.url.replace(SITE, "https://mirror.example"), sections=sections)


def _page(
    kind: PageKind,
    rng: Random,
    lead: tuple[str, ...] = (),
    sections: tuple[PageSection, ...] = (),
    title: str = "Towns",
) -> Page:
    return Page(f"{SITE}/{kind}/{rng.getrandbits(48):012x}", title, kind, lead, sections, broken=rng.random() < 1 / 6)
