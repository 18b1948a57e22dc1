"""A run that only needs `candidates`: its seed, corpus and models are stages of another root, by `reuse`.

The models are files that the `echo` engine does not read. Drivers are real `python -m jobs.augment` processes.
"""

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from humpback_ray.records import PAIR, SEGMENT
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from tests.train.conftest import make_tokenizer

REPOSITORY = Path(__file__).parents[2]


def prepare(folder: Path, rows: int) -> Path:
    """Make the reused stages and a configuration, without Ray."""
    corpus = Stage(Place("corpus", str(folder / "given/corpus"), "given"), {}, {}, SEGMENT)
    corpus.leased(functools.partial(write_corpus, rows=rows))
    seed = Stage(Place("seed", str(folder / "given/seed"), "given"), {}, {}, PAIR)
    seed.leased(write_seed)
    for name in ("backward", "m0"):
        model = Stage(Place(f"models/{name}", str(folder / f"given/models/{name}"), "given"), {}, {})
        model.leased(write_model)
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text("{}")
    make_tokenizer().save_pretrained(folder / "base")  # for the judge of canaries
    (folder / "base/model.safetensors").write_bytes(b"\0" * 8)
    names = ("seed", "corpus", "models/backward", "models/m0")
    config = {
        "root": str(folder / "run"),
        "base_model": str(folder / "base"),
        "reuse": {name: str(folder / "given" / name) for name in names},
        "augment": {
            "recipe": {"engine": {"kind": "echo"}},
            "placement": {"rows_per_shard": 10, "batch_rows": 4, "shards_in_flight": 2},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def write_corpus(attempt: Attempt, rows: int) -> Commit:
    writer = TableWriter(attempt, SEGMENT)
    for first in range(0, rows, 100):
        texts = [
            f"Segment {i} tells of thing {i * 7 % 31} and of its use." for i in range(first, min(first + 100, rows))
        ]
        table = [
            {"id": hashlib.sha256(text.encode()).hexdigest()[:32], "document_id": text[:12], "url": "", "header": "Use",
             "position": 0, "text": text, "chars": len(text), "text_hash": text, "drop_reason": None}
            for text in texts
        ]  # fmt: skip
        writer.write(pa.Table.from_pylist(table, schema=SEGMENT))
    return writer.commit()


def write_seed(attempt: Attempt) -> Commit:
    row = {"id": "1", "instruction": "x", "response": "y", "source": "seed", "score": None, "drop_reason": None}
    writer = TableWriter(attempt, PAIR)
    writer.write(pa.Table.from_pylist([row], schema=PAIR))
    return writer.commit()


def write_model(attempt: Attempt) -> Commit:
    return attempt.describe([], {}, extra={"model": "data"})


class Driver:
    """A `python -m jobs.<job>` process, and the Ray it started if its environment names none."""

    def __init__(self, job: str, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", f"jobs.{job}", *arguments]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, timeout_s: float = 400) -> str:
        """Wait for the end; return what it printed."""
        out, _ = self.process.communicate(timeout=timeout_s)
        return out


def commits(stage: Path) -> int:
    """Number of committed shards of a stage."""
    folder = stage / "commits"
    return len(list(folder.glob("[0-9]*.json"))) if folder.is_dir() else 0


def attempts(stage: Path) -> list[dict[str, Any]]:
    """All attempts of a stage."""
    return [json.loads(path.read_text()) for path in stage.glob("attempts/*/[0-9]*.json") if path.name.count(".") == 1]


def fates(stage: "Path | str") -> dict[str, tuple[Any, ...]]:
    """Id → (instruction, drop reason); fails on a duplicate id."""
    manifest = read_manifest(str(stage))
    assert isinstance(manifest, Manifest)
    rows = [row for table in manifest.tables(kept=False) for row in table.to_pylist()]
    found = {row["id"]: (row["instruction"], row["drop_reason"]) for row in rows}
    assert len(found) == len(rows)
    return found
