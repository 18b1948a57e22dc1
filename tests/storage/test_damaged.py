"""If a file of a run is damaged in any way, verify, status, gc, limits and a lease name it in a line; none crashes."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.operate import gc
from humpback_ray.operate.limits import spent
from humpback_ray.operate.status import status
from humpback_ray.operate.verify import Difference, verify
from humpback_ray.records import PAIR
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.lease import Lease
from humpback_ray.stages.ledger import Attempt, Ledger
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage

NAMED = (Difference, ConfigError, storage.StorageError)


def write(attempt: Attempt) -> Commit:
    row = {"id": "1", "instruction": "x", "response": "y", "source": "seed", "score": None, "drop_reason": None}
    writer = TableWriter(attempt, PAIR)
    writer.write(pa.Table.from_pylist([row], schema=PAIR))
    return writer.commit()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A finished stage and one made from it over shards."""
    corpus = Stage(Place("corpus", str(tmp_path / "corpus"), "one"), {}, {}, PAIR).leased(write)
    stage = Stage(Place("candidates", str(tmp_path / "candidates"), "one"), {}, {"corpus": corpus}, PAIR)
    stage.ledger.create_or_read(
        "plan.json", {"shards": [{"name": "000000", "file": None, "slices": [], "input": None}]}
    )
    with stage.ledger.begin("000000") as attempt:
        stage._publish([stage.ledger.commit(write(attempt))])
    for name, value in {
        "run.json": {}, "spent/one.json": {"hours": 1, "dollars": 2},
        "submissions/one.json": {"started": 1.0, "config": {}, "reuse": {}},
    }.items():  # fmt: skip
        storage.write_bytes(storage.join(str(tmp_path), name), json.dumps(value).encode())
    assert len(list(verify(str(tmp_path)))) == 2
    return tmp_path


def damages(data: bytes) -> Iterator[bytes]:
    """Yield damaged contents of a file that should hold a JSON object."""
    yield from (data[: len(data) // 2], b"", b"\xff\xfe", b"\0" * 8, b"[]", b"null", b"3", b'"x"', b"{}", b"[" * 99_999)
    value = json.loads(data)
    for key, found in value.items():
        yield json.dumps({name: one for name, one in value.items() if name != key}).encode()
        wrong = None if isinstance(found, dict) else {"a": 1} if isinstance(found, int | float) else 3
        yield json.dumps({**value, key: wrong}).encode()


def take_lease(root: Path) -> None:
    lease = Lease(str(root / "corpus"), "me", beat_s=0.01, stale_s=0.01)
    for _ in range(3):
        if not lease.epoch and lease.outcome is None:
            lease._advance()


def look_at_shards(root: Path) -> None:
    ledger = Ledger(str(root / "candidates"), "me")
    ledger.attempts_made()
    assert [attempt["attempt"] for attempt in ledger.attempts("000000")] == [1]
    ledger.commit_of("000000")


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "verify": (r"candidates/(?!attempts)", lambda root: list(verify(str(root)))),
    "status": (r"candidates/|submissions/", lambda root: status(str(root))),
    "gc": (r"manifest\.json", lambda root: gc.survey(str(root), 0)),
    "spent": (r"spent/", lambda root: spent(str(root))),
    "lease": (r"lease/", take_lease),
    "shards": (r"candidates/", look_at_shards),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_record_of_any_kind_is_named(root: Path, reader: str) -> None:
    part, read = READERS[reader]
    cases = refused = 0
    for path in sorted(
        path for path in root.rglob("*.*") if path.suffix in (".json", ".end") and re.search(part, str(path))
    ):
        data = path.read_bytes()
        before = set(root.rglob("*"))
        for damaged in damages(data):
            cases += 1
            path.write_bytes(damaged)
            try:
                read(root)
            except Exception as error:
                if not isinstance(error, NAMED) or str(root) not in str(error):
                    raise AssertionError(f"{path} with {damaged[:200]!r}") from error
                refused += 1
            for new in set(root.rglob("*")) - before:
                new.unlink()
        path.write_bytes(data)
    assert cases >= refused >= 8  # a lease takes over from what it cannot read, in time
