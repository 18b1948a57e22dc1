"""Proof from storage alone that nothing was lost and nothing is there twice (P8).

For every finished stage: its files are what the commits say (size, SHA-256, rows, fates by reason), the commits are
what the manifest says, and each id of the stage's input left the stage exactly as often as it came in. The segments
are held against the documents of the input files, read again.

Given up: text is not recomputed, so a worker that writes a wrong instruction is not found here.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from humpback_ray import storage
from humpback_ray.corpus.readers import Reader, reader_for
from humpback_ray.ledger import DataFile, Ledger, Manifest, drop_counts
from humpback_ray.records import QUARANTINED
from humpback_ray.run import every_stage_name, latest_submission
from humpback_ray.stage import read_manifest

SOURCE_OF = {
    "corpus": "segments",
    "candidates": "corpus",
    "prescores": "candidates",
    "sample": "candidates",
    "scores": "candidates",
    "canary-scores": "canaries",
    "curated": "candidates",
    "ratings": "sample/check",
}
"""Stage (by the last part of its name) → stage whose kept rows it gives a fate; see `source_of` for the others."""


class Difference(Exception):
    """What storage holds is not what it says it holds; the message names the stage, the file and both values."""


def verify(root: str) -> Iterator[str]:
    """Check every finished stage of a run; yields a line per stage.

    Raises:
        Difference: at the first thing that is not as recorded.
    """
    run = storage.join(root, "run.json")
    if not storage.exists(run):
        raise Difference(f"{root} is no run: it has no run.json")
    reuse = latest_submission(root)[1].get("reuse", {})
    finished: dict[str, Manifest] = {}
    compared = (f"compare/{name}" for name in storage.list_names(storage.join(root, "compare")))
    for name in every_stage_name(compared):
        uri = reuse.get(name, storage.join(root, name))
        manifest = read_manifest(uri)
        if manifest:
            finished[name] = manifest
            yield f"{name}: {verify_stage(manifest, finished)}"
        elif storage.exists(storage.join(uri, "recipe.json")):
            yield f"{name}: not finished, nothing of it is visible"
    if not finished:
        raise Difference(f"{root} has no finished stage")


def verify_stage(manifest: Manifest, finished: dict[str, Manifest]) -> str:
    """Check one stage against its files, its commits and its input; returns what was proven, in words."""
    check_plan(manifest)
    for commit in manifest.commits:
        recorded = Ledger(manifest.uri, "").commit_of(commit.shard)
        same(recorded, commit, f"{manifest.uri}/commits/{commit.shard}.json", "the commit in the manifest")
        check_files(manifest.uri, commit.files, commit.drops)
        for file in commit.aside:
            read_recorded(manifest.uri, file)
    check_quarantine(manifest)
    source = source_of(manifest.stage, manifest.inputs)
    given = finished.get(source)
    proof = "files and counts agree"
    if source.rpartition("/")[2] in manifest.inputs and given is None:
        raise Difference(f"{manifest.uri} was made from {source}, which is not here, so its ids cannot be proven")
    if given:
        name = given.stage.rpartition("/")[2]
        same(manifest.inputs[name]["digest"], given.digest, manifest.uri, f"the digest of {name}")
        check_ids(manifest, ids_of(given, kept=True), f"the kept ids of {name}")
        proof += f", each of {given.kept:,} ids from {name} has one fate"
    if manifest.stage == "segments":
        proof += check_documents(manifest)
    if manifest.rows and manifest.stage != "segments":
        check_unique(manifest)
    return f"{manifest.rows:,} rows, {proof}" if manifest.rows else proof


def source_of(stage: str, inputs: Collection[str]) -> str:
    """Return the stage whose kept rows a stage gives a fate, from its name and those of its inputs; "" without one."""
    folder, _, last = stage.rpartition("/")
    if folder == "tokens":
        return "seed"
    if last in ("tokens", "rewritten"):
        return f"{folder}/rewritten" if "rewritten" in inputs else f"{folder}/curated"
    if folder == "evaluation" and last != "prompts":
        return "evaluation/prompts"
    return "compare/sample" if folder.startswith("compare/round-") else SOURCE_OF.get(last, "")


def check_plan(manifest: Manifest) -> None:
    """The shards of the plan are the shards of the manifest."""
    plan = storage.join(manifest.uri, "plan.json")
    if storage.exists(plan):
        planned = [shard["name"] for shard in json.loads(storage.read_bytes(plan))["shards"]]
        same([commit.shard for commit in manifest.commits], planned, plan, "the shards of the manifest")


def check_files(uri: str, files: tuple[DataFile, ...], drops: dict[str, int]) -> None:
    """Sizes, hashes, row counts and fates are those of the commit."""
    counted: Counter[str] = Counter()
    for file in files:
        data = read_recorded(uri, file)
        if file.rows is not None:
            table = pq.read_table(pa.BufferReader(data), columns=["drop_reason"])
            found = (table.num_rows, table["drop_reason"].null_count)
            same(found, (file.rows, file.kept), storage.join(uri, file.name), "(rows, kept)")
            counted.update(drop_counts(table))
    same(dict(counted), drops, uri, "dropped rows by reason")


def read_recorded(uri: str, file: DataFile) -> bytes:
    """Return a file that a commit names; its size and hash are those recorded."""
    name = storage.join(uri, file.name)
    try:
        data = storage.read_bytes(name)
    except FileNotFoundError as error:
        raise Difference(f"{name} is missing, a commit names it") from error
    same(len(data), file.bytes, name, "bytes")
    same(hashlib.sha256(data).hexdigest(), file.sha256, name, "SHA-256")
    return data


def check_quarantine(manifest: Manifest) -> None:
    """The rows whose reason is `quarantined` are those of which the quarantine says why."""
    if not manifest.quarantined and not any(commit.quarantine for commit in manifest.commits):
        return
    known = Counter(manifest.quarantine()["id"].to_pylist())
    found: Counter[str] = Counter()
    for table in manifest.tables(["id", "drop_reason"], kept=False):
        rows = zip(table["id"].to_pylist(), table["drop_reason"].to_pylist(), strict=True)
        found.update(id_ for id_, reason in rows if reason == QUARANTINED)
    same(sorted(known), sorted(found), manifest.uri, "the quarantined ids")


def check_ids(manifest: Manifest, expected: Counter[str], what: str) -> None:
    """Every id that came in left, as often."""
    found = ids_of(manifest, kept=False)
    if found != expected:
        lost, surplus = expected - found, found - expected
        example = next(iter(lost or surplus))
        raise Difference(
            f"{manifest.uri}: {lost.total():,} of {expected.total():,} ids lost and {surplus.total():,} too many, held "
            f"against {what}; first: {example}, {expected[example]} times in, {found[example]} times out"
        )


def check_unique(manifest: Manifest) -> None:
    """No kept id is there twice."""
    id_, count = next(iter(ids_of(manifest, kept=True).most_common(1)), ("", 0))
    if count > 1:
        raise Difference(f"{manifest.uri}: id {id_} is kept {count} times")


def check_documents(manifest: Manifest) -> str:
    """Every document of the input files has its rows, and no other document has; held against the files read again."""
    readers = TypeAdapter(tuple[Reader, ...]).validate_python(manifest.recipe["readers"])
    files = [str(commit.extra["file"]) for commit in manifest.commits]
    gone = [file for file in files if not storage.exists(file)]
    if gone:
        return f"; {len(gone)} of {len(files)} input files are gone ({gone[0]}), so documents cannot be counted again"
    total = 0
    for file_uri, commit in zip(files, manifest.commits, strict=True):
        with storage.open_input(file_uri) as stream:
            read = {document.document_id for document in reader_for(file_uri, readers).read(stream)}
        uris = [storage.join(manifest.uri, file.name) for file in commit.files]
        kept = {value for uri in uris for value in storage.read_table(uri, ["document_id"])["document_id"].to_pylist()}
        if read != kept:
            first = min(read ^ kept)
            where = "was read but has no row" if first in read else "has rows but is not in the file"
            raise Difference(f"{manifest.uri}: shard {commit.shard} ({file_uri}): document {first} {where}")
        total += len(read)
    return f", each of {total:,} documents has its rows"


def ids_of(manifest: Manifest, kept: bool) -> Counter[str]:
    """Count the ids of a stage's tables."""
    counts: Counter[str] = Counter()
    for table in manifest.tables(["id"], kept=kept):
        counts.update(table["id"].to_pylist())
    return counts


def same(found: Any, expected: Any, where: str, what: str) -> None:
    """Raise Difference unless both values are equal."""
    if found != expected:
        raise Difference(f"{where}: {what}: found {found}, recorded {expected}")
