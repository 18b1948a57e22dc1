"""Find and delete files that a run no longer needs, even while the run is active.

Readers see only files that a manifest lists, and a manifest lists only files that commits name. So a file can be
deleted once no commit will ever name it, and that must hold for every writer that is still alive:

- *Data of a shard whose commit names another attempt.* Commits and manifests are created if absent and never changed
  or deleted, so a commit always names the same files. Attempt numbers are created if absent too, so no later writer
  reuses an old name. A writer that is about to lose to that commit never reads its own file back, so deleting the file
  does no harm. A global step and a training run write into one directory per execution. Directories that the commit
  `all` does not name can be deleted too, since the lease allows only one commit. An overtaken driver may then fail with
  a missing file instead of "overtaken"; it could not publish either way.
- *A shard without a commit* is not touched: a commit may name its files a moment later. That is the whole race with
  writers: before the commit we keep everything, after it only the winner's files. A listing is old by the time we act
  on it, so we read the commit again right before deleting, and a file that it names stays.
- *Data of a stage with a manifest* that the manifest does not list can never become visible. Retries of quarantined
  rows are the exception: they write under a new shard name, which the manifest learns last, so they are deleted by age.
- *Checkpoints* are needed to resume a training run; a run with a manifest is done, so its checkpoints can go.
- *Unfinished uploads and temporary files* are not files yet. Their writer may be alive, so they are deleted by age. If
  it is alive, its upload and its attempt fail, and the attempt is retried; nobody ever sees half a file. In a stage
  with a manifest all writers have lost or are done, so one hour is enough there.
- *Probes* of the root are a submission's first writes. It deletes them at once unless it dies; they are deleted by age.

Attempt records stay: they are the history. Any other file that does not belong to the ledger is unknown: it is named
and left alone. Only names in a listing of the root are ever deleted, and a listing never follows a link out of the
root. Stages that other runs reuse keep every file that their manifest names. Stages reused from elsewhere are not
touched.

Ages use this machine's clock, as in `status`: S3 refuses clocks that are 15 minutes off.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.graph import stage_names
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import read_manifest
from humpback_ray.stages.shards import planned
from humpback_ray.storage import Listed

LOST = "another attempt was committed"
UNLISTED = "not in the manifest"
SUPERSEDED = "checkpoints of a finished model"
TEMPORARY = "temporary files"
UPLOADS = "unfinished uploads"
PROBES = "probes of the root"

WRITERS = 32
"""Number of deletions at once: object storage takes tens of milliseconds for each."""
FINISHED_AGE_S = 3600.0
"""Minimum age of temporary files and uploads to delete in a stage with a manifest; its driver may still be ending its
lease."""

_ATTEMPT = re.compile(r"(?:data|quarantine)/(?P<shard>[^/.]+)\.(?P<execution>\d+(?:-[0-9a-f]+)?)(?:\.parquet|/.*)")
_LEDGER = re.compile(
    r"(recipe|plan|manifest|model_outputs|agreed/[^/]+)\.json|progress\.txt|attempts/.+\.json|commits/[^/]+\.json"
    r"|lease/[^/]+\.(json|beat|end)|drivers/[^/]+\.(beat|waiting)|checkpoints/.+"
)
_RUN = re.compile(r"run\.json|hashes\.json|(submissions|spent)/[^/]+\.json|report/.+")
_PROBE = re.compile(r"probe-[0-9a-f]{32}")


@dataclass(frozen=True)
class _Upload(Listed):
    """An unfinished upload, listed under the name of its file; its size is unknown."""

    upload_id: str


@dataclass(frozen=True)
class Waste:
    """Files to delete, all for the same reason, which is proven once for all of them."""

    stage: str
    """"" for the root."""
    uri: str
    """The stage directory, or the root; the files' names are relative to it."""
    reason: str
    files: tuple[Listed, ...]
    shard: str = ""

    @property
    def bytes(self) -> int:
        """Their total size."""
        return sum(file.bytes for file in self.files)


@dataclass
class Survey:
    """The result of searching a root."""

    waste: list[Waste] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Names, relative to the root, of files that no rule covers."""


def survey(root: str, older_than_s: float) -> Survey:
    """Find files to delete, without deleting any.

    Args:
        root: directory or s3:// URI of a run.
        older_than_s: age from which uploads, temporary files and probes count as abandoned.

    Raises:
        ConfigError: the root is not a run.
    """
    if not storage.exists(storage.join(root, "run.json")):
        raise ConfigError(f"{root} is not a run: it has no run.json")
    files = storage.listing(root, follow=False)
    files += [_Upload(upload.name, 0, upload.begun, upload.upload_id) for upload in storage.unfinished_uploads(root)]
    now = time.time()
    found = Survey()
    for stage, mine in _by_stage(files).items():
        place = _Place(stage, storage.join(root, stage) if stage else root, mine)
        found.waste += place.waste(now, older_than_s)
        found.unknown += [f"{stage}/{name}".lstrip("/") for name in place.unknown]
    return found


def delete(waste: Sequence[Waste]) -> list[Waste]:
    """Delete the files whose reason still holds; return the deleted ones."""
    with ThreadPoolExecutor(WRITERS) as writers:
        done = list(writers.map(_delete, waste))
    return [group for group in done if group.files]


def _delete(waste: Waste) -> Waste:
    files = _still(waste)
    for file in files:
        uri = storage.join(waste.uri, file.name)
        if isinstance(file, _Upload):
            storage.abort_upload(uri, file.upload_id)
        else:
            storage.delete(uri)
    return replace(waste, files=files)


def _still(waste: Waste) -> tuple[Listed, ...]:
    """Return the files whose reason still holds in storage; an age needs no second check, since it only grows."""
    if waste.reason == SUPERSEDED:
        return waste.files if read_manifest(waste.uri) else ()
    if waste.reason not in (LOST, UNLISTED):
        return waste.files
    commit = Ledger(waste.uri, "").commit_of(waste.shard)
    if commit is None:
        manifest = read_manifest(waste.uri) if waste.reason == UNLISTED else None
        known = manifest is None or waste.shard in {commit.shard for commit in manifest.commits}
        return () if known else waste.files
    return tuple(file for file in waste.files if not _keeps(commit, file.name))


def _keeps(commit: Commit, name: str) -> bool:
    """Tell whether a file may belong to the execution that made the commit."""
    names = [*(file.name for file in commit.files), commit.quarantine.name if commit.quarantine else ""]
    names += [f"{value}/" for value in commit.extra.values() if isinstance(value, str)]  # a model's directory
    named = {match["execution"] for match in map(_ATTEMPT.fullmatch, names) if match}
    mine = _execution(name)
    return mine in named if named else mine.split("-")[0] == str(commit.attempt)


def _execution(name: str) -> str:
    match = _ATTEMPT.fullmatch(name)
    assert match, name
    return match["execution"]


def _by_stage(files: Iterable[Listed]) -> dict[str, list[Listed]]:
    """Divide a listing of the root by stage, with names relative to the stage; "" has the files outside of stages."""
    files = list(files)
    stages = stage_names(files=(file.name for file in files))
    found: dict[str, list[Listed]] = {}
    for file in files:
        stage = next((stage for stage in stages if file.name.startswith(f"{stage}/")), "")
        found.setdefault(stage, []).append(replace(file, name=file.name[len(stage) :].lstrip("/")))
    return found


class _Place:
    """The files of a stage, or the files of the root outside of stages (`stage` is "")."""

    def __init__(self, stage: str, uri: str, files: Sequence[Listed]) -> None:
        self.stage, self.uri = stage, uri
        rules = (_ATTEMPT, _LEDGER) if stage else (_RUN, _PROBE)
        self.temporary: list[Listed] = []
        self.uploads: list[Listed] = []
        self.files: list[Listed] = []
        self.unknown: list[str] = []
        for file in files:
            if storage.is_temporary(file.name):
                self.temporary.append(file)
            elif not any(rule.fullmatch(file.name) for rule in rules):
                self.unknown.append(file.name)
            else:
                (self.uploads if isinstance(file, _Upload) else self.files).append(file)
        self.names = {file.name for file in self.files}
        self.manifest = read_manifest(uri) if stage and "manifest.json" in self.names else None

    def waste(self, now: float, older_than_s: float) -> Iterator[Waste]:
        """Find files to delete."""
        age_s = min(older_than_s, FINISHED_AGE_S) if self.manifest else older_than_s
        probes = [] if self.stage else [file for file in self.files if _PROBE.fullmatch(file.name)]
        for reason, files in ((TEMPORARY, self.temporary), (UPLOADS, self.uploads), (PROBES, probes)):
            yield from self._group(reason, [file for file in files if now - file.modified >= age_s])
        yield from self._losers(now - older_than_s)
        if self.manifest:
            yield from self._group(SUPERSEDED, [file for file in self.files if file.name.startswith("checkpoints/")])

    def _group(self, reason: str, files: Sequence[Listed], shard: str = "") -> Iterator[Waste]:
        if files:
            yield Waste(self.stage, self.uri, reason, tuple(files), shard)

    def _losers(self, before: float) -> Iterator[Waste]:
        """Find data of committed shards that their commit does not name, and data of retries older than `before`."""
        by_shard: dict[str, list[Listed]] = defaultdict(list)
        for file in self.files:
            if match := _ATTEMPT.fullmatch(file.name):
                by_shard[match["shard"]].append(file)
        commits = self._commits(by_shard)
        for shard, files in sorted(by_shard.items()):
            if commit := commits.get(shard):
                yield from self._group(LOST, [file for file in files if not _keeps(commit, file.name)], shard)
            elif self.manifest:
                old = [file for file in files if planned(shard) == shard or file.modified < before]
                yield from self._group(UNLISTED, old, shard)

    def _commits(self, by_shard: Mapping[str, Sequence[Listed]]) -> dict[str, Commit]:
        """Return the manifest's commits, or the commits of shards for which several executions left files."""
        if self.manifest:
            return {commit.shard: commit for commit in self.manifest.commits}
        contested = [shard for shard, files in by_shard.items() if len({_execution(file.name) for file in files}) > 1]
        decided = [shard for shard in contested if f"commits/{shard}.json" in self.names]
        with ThreadPoolExecutor(WRITERS) as readers:
            found = readers.map(Ledger(self.uri, "").commit_of, decided)
            return {commit.shard: commit for commit in found if commit}
