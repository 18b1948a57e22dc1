"""Read a run's tables with pyarrow alone: where rows went, pairs to look at, losses, and answers of two models.

    python examples/read_outputs.py out/demo
    python examples/read_outputs.py s3://bucket/run

A stage is what its `manifest.json` lists. So begin there, and never read `data/` by a glob: files of attempts that lost
may lie beside those that count. This file imports nothing of humpback_ray and is yours to copy from.
"""

import json
import sys
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

SHOWN = 3
"""Pairs and answers that are printed."""


class Root:
    """A run's root, on a local disk or an object store."""

    def __init__(self, uri: str) -> None:
        self.files, self.path = fs.FileSystem.from_uri(uri) if "://" in uri else (fs.LocalFileSystem(), uri)

    def manifest(self, stage: str) -> dict[str, Any]:
        """Return the manifest of a finished stage; FileNotFoundError where it is not finished."""
        with self.files.open_input_stream(f"{self.path}/{stage}/manifest.json") as stream:
            return json.loads(stream.read())

    def read(self, stage: str, name: str) -> pa.Table:
        """Return one Parquet file of a stage, by the name that the manifest gives it."""
        return pq.read_table(f"{self.path}/{stage}/{name}", filesystem=self.files)

    def table(self, stage: str) -> pa.Table:
        """Return a stage's whole table; dropped rows have a `drop_reason` and blank texts."""
        commits = self.manifest(stage)["commits"]
        return pa.concat_tables([self.read(stage, file["name"]) for commit in commits for file in commit["files"]])

    def metrics(self, model: str) -> pa.Table:
        """Return what was measured at each training step of a model."""
        stage = f"models/{model}"
        return self.read(stage, self.manifest(stage)["commits"][0]["metrics"]["name"])


def kept(table: pa.Table) -> pa.Table:
    """Return the rows that were not dropped."""
    return table.filter(table["drop_reason"].is_null())


def funnel(root: Root) -> None:
    """Print how many rows each stage kept, and why it dropped the others."""
    for stage in ("segments", "corpus", "candidates", "round-1/curated", "round-2/curated"):
        reasons = Counter(root.table(stage)["drop_reason"].to_pylist())
        stayed = reasons.pop(None, 0)
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        print(f"{stage:16} kept {stayed:6,}   dropped: {dropped or 'none'}")


def pairs(root: Root) -> None:
    """Print the best pairs of the second round, beside what the first round's model thought of them."""
    best = kept(root.table("round-2/curated")).sort_by([("score", "descending"), ("id", "ascending")])
    before = root.table("round-1/scores").select(["id", "score"]).rename_columns(["id", "first"])
    for row in best.slice(0, SHOWN).join(before, "id").sort_by("id").to_pylist():
        first = "no rating" if row["first"] is None else f"{row['first']:.2f}"
        print(f"\n[{row['score']:.2f} in round 2, {first} in round 1]\n{row['instruction']}\n-> {row['response']}")


def losses(root: Root) -> None:
    """Print the first and the last training loss of each model."""
    for model in ("backward", "m0", "m1", "m2"):
        loss = root.metrics(model)["loss"].to_pylist()
        print(f"{model:9} {len(loss):4} steps, loss {loss[0]:.3f} -> {loss[-1]:.3f}")


def answers(root: Root) -> None:
    """Print what the model before and the model after self-training answer to the same prompts."""
    first, last = (kept(root.table(f"evaluation/{model}")).sort_by("id") for model in ("m0", "m2"))
    both = first.select(["id", "instruction", "output"]).join(
        last.select(["id", "output"]), "id", right_suffix="_m2", join_type="inner"
    )
    for row in both.sort_by("id").slice(0, SHOWN).to_pylist():
        print(f"\n{row['instruction']}\n  M_0: {row['output']}\n  M_2: {row['output_m2']}")


def main(argv: list[str]) -> int:
    """Print all of it for the root that is named."""
    if len(argv) != 1:
        print("usage: python examples/read_outputs.py ROOT", file=sys.stderr)
        return 2
    root = Root(argv[0])
    for part in (funnel, losses, pairs, answers):
        print(f"\n== {part.__name__} ==")
        try:
            part(root)
        except FileNotFoundError as error:
            print(f"not finished, or no run of two rounds: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
