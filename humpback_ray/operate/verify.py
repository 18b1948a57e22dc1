"""Check, with no Ray and no model, that no row was lost and no row is duplicated (P8).

For every finished stage:

- its files match the commits (size, SHA-256, rows, fates by reason), the commits match the manifest, the recipe is the
  manifest's, and the digest of every input equals that of the stage that made it;
- each id that it was given left it exactly as often as it came in, and no kept id occurs twice;
- if it read outside files, they are still the manifest's files, and reading them again gives the same rows: segments
  are cut again, seed pairs and prompts are collected again.

A check that cannot be made, because an input file is missing or another version read it, is listed; it is not a
difference.

A shard costs two requests, for its commit and its file, `READERS` at once. Ids take 16 bytes each, in memory up to
`multiset.HELD_IDS`, then on disk.

Given up: model output is not computed again, so a worker that writes a wrong instruction is not detected.
"""

import hashlib
import io
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray import storage
from humpback_ray.config import fingerprint
from humpback_ray.graph import kind_of
from humpback_ray.operate.multiset import Multiset
from humpback_ray.records import QUARANTINED
from humpback_ray.run import stages_there
from humpback_ray.stages.commits import Commit, DataFile
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.parsing import read_as
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.proof import Again, Difference, EachFile, Together
from humpback_ray.stages.shards import planned
from humpback_ray.stages.tables import drop_counts, is_quarantined
from humpback_ray.storage import InputFile

READERS = 16
"""Number of commits read at once."""
CUTTERS_FROM_BYTES = 64 << 20
"""Total size of input files from which several processes cut them again; these take seconds to start."""

T = TypeVar("T")
R = TypeVar("R")


def verify(root: str, unproven: list[str] | None = None) -> Iterator[str]:
    """Check every finished stage of a run and the stages that it reuses from other runs; yield a line per stage.

    Args:
        root: directory or s3:// URI of a run.
        unproven: receives a line for each check that could not be made.

    Raises:
        Difference: something is not as recorded; the first such thing is named.
    """
    run = storage.join(root, "run.json")
    if not storage.exists(run):
        raise Difference(f"{root} is not a run: it has no run.json")
    with Verifier.opened([] if unproven is None else unproven) as verifier:
        for name in stages_there(root):
            uri = storage.join(root, name)
            with differences():
                if manifest := read_manifest(uri):
                    yield from verifier.prove(manifest)
                elif storage.exists(storage.join(uri, "recipe.json")):
                    yield f"{name}: not finished, so none of its rows are visible"
        if not verifier.proven:
            raise Difference(f"{root} has no finished stage")


def verify_stage(manifest: Manifest, unproven: list[str] | None = None) -> str:
    """Check one stage and the stages that it was made from; say what was proven about it.

    Raises:
        Difference: something is not as recorded; the first such thing is named.
    """
    with Verifier.opened([] if unproven is None else unproven) as verifier, differences():
        *_, last = verifier.prove(manifest)
        return last.partition(": ")[2]


@contextmanager
def differences() -> Iterator[None]:
    """Turn storage's error about a damaged file into a Difference."""
    try:
        yield
    except storage.Damaged as damaged:
        raise Difference(str(damaged.strerror)) from damaged


class Checked(NamedTuple):
    """The columns of a commit's rows that are checked."""

    ids: pa.ChunkedArray
    kept: pa.ChunkedArray
    quarantined: list[str]
    documents: list[str]
    """Documents of the quarantined rows, if rows are made from documents."""


class Verifier:
    """Checks stages one after another.

    Args:
        unproven: receives a line for each check that could not be made.
        folder: on this machine, for ids that do not fit in memory.
    """

    def __init__(self, unproven: list[str], folder: str) -> None:
        self.unproven, self.folder = unproven, folder
        self.proven: dict[str, Manifest] = {}
        """By URI."""
        self.kept: dict[str, Multiset] = {}
        """The kept ids of the proven stages."""
        self.inputs: set[InputFile] = set()
        """Outside files that were checked."""

    @staticmethod
    @contextmanager
    def opened(unproven: list[str]) -> "Iterator[Verifier]":
        """Yield a verifier with a temporary folder on this machine."""
        with TemporaryDirectory(prefix="humpback-verify-") as folder:
            yield Verifier(unproven, folder)

    def prove(self, manifest: Manifest) -> Iterator[str]:
        """Check a stage, after any of its sources that were not checked yet; yield a line for each."""
        if manifest.uri in self.proven:
            return
        for name, uri in manifest.source_uris().items():
            source = self.proven.get(uri) or read_manifest(uri)
            if source is None:
                raise Difference(
                    f"{manifest.uri} was made from {name} at {uri}, which is missing, so nothing can be proven about it"
                )
            yield from self.prove(source)
        yield f"{manifest.stage}: {self._stage(manifest)}"

    def _stage(self, manifest: Manifest) -> str:
        check_identity(manifest)
        check_plan(manifest)
        for name, uri in manifest.source_uris().items():
            same(manifest.inputs[name], {"digest": self.proven[uri].digest}, manifest.uri, f"the digest of {name}")
        given = manifest.source_uris().get(manifest.ids_of)
        every, kept, documents = self._rows(manifest)
        proof = "files and counts agree"
        if given:
            self._same_ids(manifest, every, self.kept[given], self.proven[given])
            proof += f", each of {self.kept[given].count:,} ids from {manifest.ids_of} has one fate"
        if not isinstance(again_of(manifest), EachFile) and (digest := kept.repeated()):
            id_, count = named(manifest, digest)
            raise Difference(f"{manifest.uri}: id {id_} is kept {count} times")
        proof += self._outside(manifest, every, documents)
        check_sums(manifest)
        self.proven[manifest.uri], self.kept[manifest.uri] = manifest, kept
        return f"{manifest.rows:,} rows, {proof}" if manifest.rows else proof

    def _rows(self, manifest: Manifest) -> tuple[Multiset, Multiset, dict[str, set[str]]]:
        """Check the files of all commits; return all ids, the kept ids, and the quarantined documents by shard."""
        every, kept = Multiset(self.folder), Multiset(self.folder)
        documents: dict[str, set[str]] = {}
        lost: Counter[str] = Counter()
        with Progress(f"verify {manifest.stage}", len(manifest.commits), unit="shards") as progress:
            for commit, tables in at_once(lambda commit: (commit, check_commit(manifest, commit)), manifest.commits):
                for table in tables:
                    every.add(table.ids)
                    kept.add(table.kept)
                    lost.update(table.quarantined)
                    documents.setdefault(commit.shard, set()).update(table.documents)
                progress.advance(1)
        if lost or any(commit.quarantine for commit in manifest.commits):
            known = sorted(manifest.quarantine()["id"].to_pylist())
            same(known, sorted(lost.elements()), manifest.uri, "the quarantined ids")
        return every, kept, documents

    def _same_ids(self, manifest: Manifest, found: Multiset, expected: Multiset, given: Manifest) -> None:
        """Raise unless every id left exactly as often as it came in."""
        if difference := expected.difference(found):
            lost, surplus, digest = difference
            id_, before = named(given, digest)
            id_, after = named(manifest, digest, id_)
            raise Difference(
                f"{manifest.uri}: {lost:,} of {expected.count:,} ids lost and {surplus:,} too many, compared with the "
                f"kept ids of {given.stage}; first: {id_}, {before} times in, {after} times out"
            )

    def _outside(self, manifest: Manifest, every: Multiset, documents: dict[str, set[str]]) -> str:
        """Check the outside files against the manifest; say what was proven."""
        again = again_of(manifest)
        files = {name: manifest.input_files(name) for name, value in manifest.inputs.items() if isinstance(value, list)}
        there = {name: [file for file in known if self._is_there(manifest, file)] for name, known in files.items()}
        if not manifest.rows or "files" not in files:
            return ""
        if gone := [file for file in files["files"] if file not in there["files"]]:
            said = f"{len(gone)} of {len(files['files'])} input files are missing ({gone[0].uri})"
            self.unproven.append(f"{manifest.stage}: {said}, so their rows were not counted again")
        if isinstance(again, EachFile):
            return self._each_file(manifest, again, files["files"], set(there["files"]), documents)
        return self._together(manifest, again, files["files"], every) if again and not gone else ""

    def _is_there(self, manifest: Manifest, file: InputFile) -> bool:
        """Check an outside file if it can be reached; tell whether it can."""
        if not file.uri or not storage.exists(file.uri):
            if not isinstance(again_of(manifest), EachFile) and file not in self.inputs:
                self.unproven.append(f"{manifest.stage}: {file.uri or file.name} is missing, so it was not checked")
            self.inputs.add(file)
            return False
        if file not in self.inputs:
            storage.check_unchanged(file)
            self.inputs.add(file)
        return True

    def _together(self, manifest: Manifest, again: Together, files: Sequence[InputFile], every: Multiset) -> str:
        """Read the input files again and compare their rows."""
        anew = Multiset(self.folder)
        for ids in again.ids(manifest, files):
            anew.add(ids)
        if difference := anew.difference(every):
            lost, surplus, _ = difference
            raise Difference(
                f"{manifest.uri}: {lost:,} of {anew.count:,} rows lost and {surplus:,} too many, compared with its "
                "input files, read again"
            )
        return f", the input files, read again, give the same {anew.count:,} rows"

    def _each_file(
        self,
        manifest: Manifest,
        again: EachFile,
        files: Sequence[InputFile],
        there: set[InputFile],
        documents: dict[str, set[str]],
    ) -> str:
        """Make the rows of every input file again and compare them."""
        if reason := again.refusal(manifest):
            self.unproven.append(f"{manifest.stage}: {reason}")
            return ""
        known = replace(manifest, commits=())  # sent to every process, and there may be thousands of commits
        work = [
            (known, commit, file, frozenset(documents.get(commit.shard, ())))
            for commit, file in zip(manifest.commits, files, strict=True)
            if file in there
        ]
        several = sum(file.bytes for file in there) >= CUTTERS_FROM_BYTES
        total = 0
        with Progress(f"verify {manifest.stage}", len(work), unit="files") as progress:
            for count in processes(again.check, work) if several else (again.check(*one) for one in work):
                total += count
                progress.advance(1)
        return f", each of {total:,} documents has its rows"


def again_of(manifest: Manifest) -> Again | None:
    """Return how the rows of a stage are made again from files."""
    kind = kind_of(manifest.stage)
    return kind.again if kind else None


def at_once(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map over items with `READERS` threads, in order, a few at a time."""
    items = iter(items)
    with ThreadPoolExecutor(READERS) as readers:
        while some := list(islice(items, 8 * READERS)):
            yield from readers.map(work, some)


def processes(work: Callable[..., R], items: Sequence[tuple[Any, ...]]) -> Iterator[R]:
    """Map over tuples of arguments with a process per CPU."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, *zip(*items, strict=True))


def check_identity(manifest: Manifest) -> None:
    """Check that recipe.json has the manifest's recipe, inputs and fingerprint."""
    name = storage.join(manifest.uri, "recipe.json")
    try:
        begun = storage.read_json(name)
    except FileNotFoundError as error:
        raise Difference(f"{name} is missing") from error
    for field in ("recipe", "inputs", "fingerprint"):
        same(begun.get(field), getattr(manifest, field), name, field)
    identity = {"recipe": manifest.recipe, "inputs": manifest.inputs}
    same(manifest.fingerprint, fingerprint(identity), manifest.uri, "the fingerprint")


def check_sums(manifest: Manifest) -> None:
    """Check the totals and the digest that manifest.json states of its commits."""
    name = storage.join(manifest.uri, "manifest.json")
    read = manifest if manifest.stated else read_manifest(manifest.uri)
    stated = read.stated if read else {}
    same(stated.get("digest"), manifest.digest, name, "digest")
    for field, found in stated["totals"].items():
        same(found, getattr(manifest, field, found), name, f"totals.{field}")


def check_plan(manifest: Manifest) -> None:
    """Check that the manifest has the shards of the plan."""
    plan = storage.join(manifest.uri, "plan.json")
    if storage.exists(plan):
        expected = read_as(lambda value: [shard["name"] for shard in value["shards"]], storage.read_json(plan), plan)
        same([planned(commit.shard) for commit in manifest.commits], expected, plan, "the shards of the manifest")


def check_commit(manifest: Manifest, commit: Commit) -> list[Checked]:
    """Check that a commit is the manifest's and that its files match it; return their rows' columns to check."""
    recorded = Ledger(manifest.uri, "").commit_of(commit.shard)
    same(recorded, commit, f"{manifest.uri}/commits/{commit.shard}.json", "the commit in the manifest")
    counted: Counter[str] = Counter()
    tables = []
    for file in commit.files:
        data = read_recorded(manifest.uri, file)
        if file.rows is None:
            continue
        columns = ["id", "drop_reason", *(["document_id"] if isinstance(again_of(manifest), EachFile) else [])]
        table = pq.read_table(pa.BufferReader(data), columns=columns)
        found = (table.num_rows, table["drop_reason"].null_count)
        same(found, (file.rows, file.kept), storage.join(manifest.uri, file.name), "(rows, kept)")
        drops = drop_counts(table)
        counted.update(drops)
        lost = table.filter(is_quarantined(table)) if QUARANTINED in drops else None
        tables.append(Checked(
            table["id"], table["id"].filter(table["drop_reason"].is_null()),
            lost["id"].to_pylist() if lost else [],
            lost["document_id"].to_pylist() if lost and "document_id" in columns else [],
        ))  # fmt: skip
    same(dict(counted), commit.drops, manifest.uri, "dropped rows by reason")
    rows, kept = (sum(getattr(file, name) or 0 for file in commit.files) for name in ("rows", "kept"))
    same((commit.rows, commit.kept), (rows, kept), f"{manifest.uri}: shard {commit.shard}", "(rows, kept)")
    for file in commit.aside:
        read_recorded(manifest.uri, file)
    return tables


def read_recorded(uri: str, file: DataFile) -> bytes:
    """Check the size and hash of a file that a commit names; return its content if it is a table."""
    name = storage.join(uri, file.name)
    digest, size, held = hashlib.sha256(), 0, io.BytesIO()
    try:
        with storage.open_input(name) as stream:
            while block := stream.read(storage.BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                if file.rows is not None:
                    held.write(block)
    except FileNotFoundError as error:
        raise Difference(f"{name} is missing, but a commit names it") from error
    same(size, file.bytes, name, "bytes")
    same(digest.hexdigest(), file.sha256, name, "SHA-256")
    return held.getvalue()


def named(manifest: Manifest, digest: bytes, known: str = "") -> tuple[str, int]:
    """Return the id with a digest (`known` if no row has it), and how many rows of a stage have it."""
    found = [
        id_
        for table in manifest.tables(["id"], kept=False)
        for id_ in table["id"].to_pylist()
        if Multiset.digest(id_) == digest
    ]
    return (found[0] if found else known), len(found)


def same(found: Any, expected: Any, where: str, what: str) -> None:
    """Raise Difference unless both values are equal."""
    if found != expected:
        raise Difference(f"{where}: {what}: found {_short(found)}, recorded {_short(expected)}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else text[:297] + "..."
