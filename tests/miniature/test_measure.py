from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray.miniature.measure import known_of, measure
from humpback_ray.records import CANDIDATE
from humpback_ray.sample.build import write_web
from humpback_ray.sample.world import WorldRecipe
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage

WORLD = WorldRecipe(seed_towns=2, pool_towns=4, unseen_towns=2, common_towns=2, documents=1, archives=1, prompts=4)


@pytest.fixture
def web(tmp_path: Path) -> Manifest:
    stage = Stage(Place("sample/web", str(tmp_path / "web"), "first"), WORLD, {})
    return stage.leased(lambda attempt: write_web(attempt, WORLD))


def candidates(root: Path, rows: list[dict[str, Any]]) -> Manifest:
    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, CANDIDATE)
        writer.write(pa.Table.from_pylist(rows, schema=CANDIDATE))
        return writer.commit()

    return Stage(Place("candidates", str(root / "candidates"), "first"), {}, {}, CANDIDATE).leased(write)


def test_candidates_are_judged_by_the_segments_that_the_truth_knows(web: Manifest, tmp_path: Path) -> None:
    (url, text), segment = next(item for item in known_of(web).segments.items() if item[1].kind == "right")
    rows = [
        {"id": "known", "url": url, "instruction": "What?", "response": text},
        {"id": "other", "url": "https://real.example", "instruction": "What?", "response": "A page."},
    ]
    found = measure({"sample/web": web, "candidates": candidates(tmp_path, rows)})
    assert found
    assert found.candidates
    assert found.candidates.kinds == {segment.kind: 1, "unknown": 1}
    assert (found.candidates.good, found.candidates.others) == (frozenset(), frozenset({"known", "other"}))
    assert found.question_accuracy == 0


def test_real_pages_tried_with_the_toys_base_are_not_judged(web: Manifest, tmp_path: Path) -> None:
    rows = [{"id": "other", "url": "https://real.example", "instruction": "What?", "response": "A page."}]
    found = measure({"sample/web": web, "candidates": candidates(tmp_path, rows)})
    assert found
    assert found.candidates is None
    assert found.question_accuracy is None
