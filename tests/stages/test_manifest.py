"""Manifests: read back as written, verified, and identified by their files alone."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray.operate.verify import Difference, verify_stage
from humpback_ray.records import METRICS
from humpback_ray.stages.commits import Commit, DataFile
from humpback_ray.stages.ledger import Attempt, write_table
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.stage import Place, Stage


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = DataFile("data/0.1.parquet", 10, "ab", 3, 2)
    commits = tuple(
        Commit(
            str(n),
            1,
            (file,),
            3,
            2,
            {"quarantined": 1},
            0.5,
            quarantine=file,
            metrics=replace(file, name="data/0.1/metrics.parquet"),
            versions={"ray": "2"},
            requests={"GetObject": n},
        )
        for n in range(3)
    )
    made = Manifest("uri", "stage", "f", {"a": 1}, {}, commits, 4, 1.0, 2.0, {"PutObject": 5})
    read = Manifest.parse("uri", json.loads(made.json()))
    assert read == made
    assert read.requests == {"PutObject": 5, "GetObject": 3}
    assert read.quarantined == 3
    assert read.digest == made.digest


def trained(root: Path, seconds: float) -> Manifest:
    """A stage with metrics of two steps."""
    steps = [{"step": step, "loss": 2.0, "seconds": seconds} for step in (1, 2)]

    def work(attempt: Attempt) -> Commit:
        file = write_table(attempt.ledger, "data/all.1/metrics.parquet", pa.Table.from_pylist(steps, schema=METRICS))
        return replace(attempt.describe([], {}), metrics=file)

    return Stage(Place("models/m0", str(root), "test"), {}, {}).leased(work)


def test_metrics_are_read_and_verified_but_their_times_are_not_part_of_a_models_identity(tmp_path: Path) -> None:
    made = trained(tmp_path / "one", 0.5)
    assert made.metrics().column("seconds").to_pylist() == [0.5, 0.5]
    assert made.digest == trained(tmp_path / "other", 0.7).digest
    verify_stage(made)
    path = tmp_path / "one/data/all.1/metrics.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Difference, match=r"metrics\.parquet: SHA-256"):
        verify_stage(made)


def test_the_card_beside_a_models_weights_is_not_part_of_its_identity() -> None:
    def model(card: str, weights: str) -> str:
        named = {"README.md": card, "model.safetensors": weights}
        files = tuple(DataFile(f"data/all.1-abc/{name}", 9, sha256) for name, sha256 in named.items())
        commit = Commit("all", 1, files, 0, 0, {}, 1.0)
        return Manifest("uri", "models/m0", "f", {}, {}, (commit,), 1, 1.0, 2.0).digest

    assert model("of the run out/a", "w") == model("of the run out/b", "w") != model("of the run out/a", "other w")
