"""A page that kills every worker loses only that page, wherever it is in its file; the others are cut as usual."""

import os
from pathlib import Path

import pytest

from humpback_ray.corpus import segments
from humpback_ray.corpus.readers import default_readers
from humpback_ray.corpus.segments import Segmenter, SegmentRecipe
from humpback_ray.needs import Resources
from humpback_ray.operate.verify import verify_stage
from humpback_ray.placement import PoolPlacement
from humpback_ray.records import QUARANTINED, SEGMENT
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage.inventory import Hashes, resolve
from tests.corpus.archive import archive, response

pytestmark = pytest.mark.ray
PAGES = 9


class DiesOfPage4(Segmenter):
    """Ends its process at a page with a certain URL; everything else is the real segmenter."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(SegmentRecipe(), default_readers(), resources)
        real = segments.segments

        def deadly(record: segments.Document, recipe: SegmentRecipe):
            if record.url.endswith("/4"):
                os._exit(7)
            return real(record, recipe)

        segments.segments = deadly


def page(number: int) -> bytes:
    words = " ".join(f"word{number}x{i}" for i in range(120))
    html = f"<html><body><h1>Title of page {number}</h1><p>{words}. The end of it.</p></body></html>".encode()
    return response(html, f"https://example.org/{number}", record_id=f"<urn:uuid:{number % 8}>")


def test_a_deadly_page_is_quarantined_and_the_others_are_unaffected(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "pages.warc.gz").write_bytes(archive(*[page(number) for number in range(PAGES)]))
    files = resolve("test", [str(tmp_path / "pages.warc.gz")], Hashes(str(tmp_path / "hashes.json")))
    identity = {
        "readers": [reader.model_dump(mode="json") for reader in default_readers()],
        "segments": SegmentRecipe().identity(),
    }
    stage = Stage(Place("segments", str(tmp_path / "segments"), "first"), identity, {"files": files}, SEGMENT)
    pool = PoolPlacement(cpus_per_replica=0.5, max_attempts=1, shards_in_flight=1)
    done = stage.run(DiesOfPage4, (), pool, files)
    rows = {row["id"]: row for table in done.tables(kept=False) for row in table.to_pylist()}
    undisturbed = Segmenter(SegmentRecipe())(files.files[0])
    expected = {row["id"]: row for row in undisturbed.to_pylist() if not row["url"].endswith("/4")}
    assert {key: row for key, row in rows.items() if row["drop_reason"] != QUARANTINED} == expected
    (lost,) = done.quarantine().to_pylist()
    assert rows[lost["id"]]["url"] == "https://example.org/4"
    assert "Title of page 4" in lost["text"]
    assert f"each of {PAGES - 1} documents has its rows" in verify_stage(done)
