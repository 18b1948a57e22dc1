"""Selection as a step: candidates and scores from several files in, one table of fates out."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray.curate.rounds import keep
from humpback_ray.curate.select import SelectRecipe, TooFewKept
from humpback_ray.records import CANDIDATE, PAIR, SCORE
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage

ROWS = [
    ("a", "What is a weir?", "https://x.org/1", 5.0),
    ("b", "what is a weir", "https://y.org/2", 4.9),
    ("c", "Name a river.", "https://x.org/3", 4.8),
    ("d", "Name a lake.", "https://x.org/4", 4.7),
    ("e", "Name a sea.", None, 3.0),
    ("f", "Name a pond.", "https://z.org/5", None),
]


def stage(folder: Path, name: str, schema: pa.Schema, rows: list[dict], size: int) -> Manifest:
    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, schema)
        for first in range(0, len(rows), size):
            writer.write(pa.Table.from_pylist(rows[first : first + size], schema=schema))
        return writer.commit()

    return Stage(Place(name, str(folder / name), "s"), {}, {}, schema).leased(write)


@pytest.fixture
def curated(tmp_path: Path) -> Callable[[SelectRecipe, int], Manifest]:
    def select(rule: SelectRecipe, size: int) -> Manifest:
        folder = tmp_path / f"{size}"
        rows = [{"id": i, "instruction": x, "url": url, "response": f"y{i}"} for i, x, url, _ in ROWS]
        rows.append({"id": "g", "instruction": "", "url": "", "response": "", "drop_reason": "refusal"})
        scores = [
            {"id": i, "score": score, "drop_reason": None if score else "unrated_unparsed"} for i, *_, score in ROWS
        ]
        candidates = stage(folder, "candidates", CANDIDATE, rows, size)
        rated = stage(folder, "scores", SCORE, scores[::-1], size)
        made = Stage(Place("curated", str(folder / "curated"), "s"), {}, {}, PAIR)
        return made.leased(lambda attempt: keep(attempt, candidates, rated, rule))

    return select


@pytest.mark.parametrize("size", [1, 2, 100])
def test_fates_do_not_depend_on_the_files(curated: Callable[[SelectRecipe, int], Manifest], size: int) -> None:
    made = curated(SelectRecipe(threshold=4, near_duplicate_jaccard=0.8, max_per_domain=2), size)
    rows = {row["id"]: row for table in made.tables(kept=False) for row in table.to_pylist()}
    assert {i: row["drop_reason"] for i, row in rows.items()} == {
        "a": None, "b": "near_duplicate", "c": None, "d": "over_domain_cap", "e": "below_threshold",
        "f": "unrated_unparsed",
    }  # fmt: skip
    assert [(row["instruction"], row["response"]) for row in rows.values()].count(("", "")) == 4
    assert made.drops == {
        "near_duplicate": 1, "over_domain_cap": 1, "below_threshold": 1, "unrated_unparsed": 1
    }  # fmt: skip
    assert [(rule["rule"], rule["kept"]) for rule in made.extra["rules"]] == [
        ("unrated", 5), ("below_threshold", 4), ("near_duplicate", 3), ("over_domain_cap", 2),
    ]  # fmt: skip


def test_too_few_after_all_rules_publish_nothing(curated: Callable[[SelectRecipe, int], Manifest]) -> None:
    with pytest.raises(TooFewKept, match=r"at most 1 per domain.* kept 1 of 5 rated pairs, but min_kept is 2"):
        curated(SelectRecipe(threshold=4.75, near_duplicate_jaccard=0.8, max_per_domain=1, min_kept=2), 100)
