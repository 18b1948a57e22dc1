"""The toy web: a world with known truth, written as the input files of a run.

    web/web-<n>.warc.gz   pages as crawled: half of the possible candidates are junk
    seed.jsonl            question and answer trees in Open Assistant's export format
    prompts.jsonl         held-out questions to develop on (dev); prompts-test.jsonl: others, to report on
    truth.jsonl           the truth: towns, facts, the kind of every segment, the fact that every prompt asks for

Equal recipes give equal bytes. No stage reads the truth; it serves to judge the run. The archive holds a part of the
web that `documents` returns as a whole, as a web archive holds a part of the text that a base model has read. The toy
is easier than the real world in one way: its reviews compare question and answer explicitly, and puzzle pages drill
that comparison.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.sample import crawl
from humpback_ray.sample.facts import Fact, Split, Truth, draw_truth
from humpback_ray.sample.pages import Page, PageKind, write_archives
from humpback_ray.sample.texts import question
from humpback_ray.sample.trees import seed_trees


class WorldRecipe(Config):
    """Definition of the toy world. Hashed into the manifest: a change here is another world."""

    version: int = 2
    """Bumped by hand when the meaning of this recipe changes."""

    seed: int = 0
    """Every draw derives from it."""

    seed_towns: int = Field(default=48, ge=2)
    """Towns of the seed pairs, one pair each."""

    pool_towns: int = Field(default=64, ge=2)
    """Towns of the candidate segments."""

    unseen_towns: int = Field(default=50, ge=2)
    """Towns that occur only on plain pages; held-out questions ask about them."""

    common_towns: int = Field(default=200, ge=2)
    """Towns of reviews, FAQ, and texts followed by their question, but not of plain pages. With 60 the base memorized
    these names and could not write another one into a review."""

    fact_share: float = Field(default=0.8, ge=0, le=1)
    """Probability of each of the two good segments that a fact of the pool may have."""

    junk_per_fact: float = Field(default=0.8, ge=0, le=1)
    """Probability of each of the two junk segments that the candidate pages may have for a fact of the pool."""

    archives: int = Field(default=4, ge=1)
    """WARC files."""

    archived: dict[PageKind, int] = Field(
        default={"plain": 60, "faq": 24, "asked": 40, "review": 60, "puzzle": 10, "junk": 20}
    )
    """Pages of the wider web in the archive, in addition to the town pages."""

    documents: int = Field(default=40_000, ge=1)
    """Pages of the wider web that the base model reads."""

    shares: dict[PageKind, float] = Field(
        default={"plain": 0.32, "faq": 0.02, "asked": 0.12, "review": 0.37, "puzzle": 0.13, "junk": 0.04}
    )
    """Share of each kind of page in the wider web."""

    prompts: int = Field(default=150, ge=1)
    """Held-out questions in each of the two files; two thirds are about unseen towns, the others about the pool."""


def truth_of(recipe: WorldRecipe) -> Truth:
    """Return the truth of a recipe's world."""
    counts: dict[Split, int] = {
        "seed": recipe.seed_towns,
        "pool": recipe.pool_towns,
        "unseen": recipe.unseen_towns,
        "common": recipe.common_towns,
    }
    return draw_truth(counts, recipe.seed)


def documents(recipe: WorldRecipe) -> list[str]:
    """Return the texts that the base model reads: the archive's pages and the wider web, one document per page."""
    truth, rng = truth_of(recipe), Random(f"{recipe.seed}:wider")
    kinds, weights = list(recipe.shares), list(recipe.shares.values())
    draw = _drawer(truth, rng)
    wider = (draw(kind) for kind in rng.choices(kinds, weights, k=recipe.documents))
    texts = [page.plain() for page in (*archive(recipe, truth), *wider)]
    return [text for text in texts if text]


def archive(recipe: WorldRecipe, truth: Truth) -> list[Page]:
    """Return the pages of the WARC files, in their order."""
    rng = Random(f"{recipe.seed}:archive")
    pages = list(crawl.town_pages(truth, rng, recipe.fact_share, recipe.junk_per_fact))
    draw = _drawer(truth, rng)
    pages += [draw(kind) for kind, count in recipe.archived.items() for _ in range(count)]
    pages += crawl.awkward_pages(truth, rng)
    pages += crawl.mirrors(pages, rng)
    rng.shuffle(pages)
    return pages


def _drawer(truth: Truth, rng: Random) -> Callable[[PageKind], Page]:
    told: tuple[Split, ...] = ("seed", "pool", "unseen")
    towns = [town for split in told for town in truth.towns[split]]
    everything, known = truth.of(*told), truth.of("common", "seed")

    def draw(kind: PageKind) -> Page:
        if kind == "plain":
            return crawl.plain_page(truth, towns, rng)
        if kind == "faq":
            return crawl.faq_page(known, rng)
        if kind == "asked":
            return crawl.asked_page(known, rng)
        if kind == "review":
            return crawl.review_page(truth, known, rng)
        if kind == "puzzle":
            return crawl.puzzle_page(known, rng)
        return crawl.junk_page(truth, everything, rng)

    return draw


def write_world(recipe: WorldRecipe, directory: Path) -> dict[str, int]:
    """Write the world's files to a directory and return counts of their contents."""
    truth = truth_of(recipe)
    pages = archive(recipe, truth)
    write_archives(pages, directory / "web", recipe.archives, Random(f"{recipe.seed}:html"))
    trees = seed_trees(truth, Random(f"{recipe.seed}:trees"))
    asked = held_out(recipe, truth)
    known = [*_town_lines(truth), *_segment_lines(pages), *(line for lines in asked.values() for line in lines)]
    _write_lines(directory / "seed.jsonl", trees)
    for name, lines in asked.items():
        _write_lines(directory / name, ({k: line[k] for k in ("id", "instruction", "dataset")} for line in lines))
    _write_lines(directory / "truth.jsonl", known)
    segments = [line for line in known if line["record"] == "segment"]
    return {
        "pages": len(pages),
        "sections": len(segments),
        "good_sections": sum(line["kind"] == "right" for line in segments),
        "trees": len(trees),
        "prompts": len(asked["prompts.jsonl"]),
        "facts": len(truth.of("seed", "pool", "unseen", "common")),
    }


def held_out(recipe: WorldRecipe, truth: Truth) -> dict[str, list[dict[str, str]]]:
    """Return the questions of each prompt file with their facts; the two files share no fact."""
    rng = Random(f"{recipe.seed}:prompts")
    unseen = recipe.prompts * 2 // 3
    drawn = {
        "unseen": rng.sample(truth.of("unseen"), min(2 * unseen, len(truth.of("unseen")))),
        "pool": rng.sample(truth.of("pool"), min(2 * (recipe.prompts - unseen), len(truth.of("pool")))),
    }
    files: dict[str, list[dict[str, str]]] = {"prompts.jsonl": [], "prompts-test.jsonl": []}
    for split, facts in drawn.items():
        for index, fact in enumerate(facts):
            name, part = ("prompts.jsonl", "dev") if index % 2 == 0 else ("prompts-test.jsonl", "test")
            line = {"record": "prompt", "id": f"{part}-{split}-{index // 2:03d}", "dataset": f"toy_{part}_{split}"}
            files[name].append({**line, "instruction": question(fact, rng), **_fact_values(fact)})
    return files


def _town_lines(truth: Truth) -> Iterator[dict[str, str]]:
    for fact in truth.of("seed", "pool", "unseen", "common"):
        yield {"record": "fact", **_fact_values(fact)}


def _segment_lines(pages: Iterable[Page]) -> Iterator[dict[str, str]]:
    for page in pages:
        for section in page.sections:
            told = {"url": page.url, "header": section.header, "text": section.text(), "kind": section.content.kind}
            yield {"record": "segment", **told, **(_fact_values(section.content.fact) if section.content.fact else {})}


def _fact_values(fact: Fact) -> dict[str, str]:
    return {"town": fact.town, "attribute": fact.noun, "value": fact.value, "split": fact.split}


def _write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")
