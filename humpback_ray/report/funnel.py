"""Rows that the stages of a run took in, kept and dropped, and the time they took.

Everything is read from manifests, except counts in notes, which are read from tables, one file at a time.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from humpback_ray.graph import kind_of
from humpback_ray.records import RESPONSE, REWRITE
from humpback_ray.stages.enough import UNKNOWN_KEYS, frequent
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.proof import EachFile

Manifests = Mapping[str, Manifest]


@dataclass(frozen=True)
class Drop:
    """Rows of one stage that were dropped for one reason."""

    reason: str
    rows: int
    share: float


@dataclass(frozen=True)
class FunnelRow:
    """One stage that makes a table."""

    stage: str
    rows: int
    """Rows taken in; each is either kept or dropped, so this is the sum of both."""
    kept: int
    drops: tuple[Drop, ...]
    note: str

    @property
    def kept_share(self) -> float:
        """Share of the rows that were kept; 0 without rows."""
        return self.kept / self.rows if self.rows else 0.0


def funnel(manifests: Manifests) -> list[FunnelRow]:
    """Return a row per stage that made a table, in the order of the run."""
    return [_funnel_row(name, manifest) for name, manifest in manifests.items() if has_table(manifest)]


def has_table(manifest: Manifest) -> bool:
    """Tell whether a stage made rows (models and the sample's web are other files)."""
    return any(file.rows is not None for file in manifest.files)


def _funnel_row(name: str, manifest: Manifest) -> FunnelRow:
    rows = manifest.rows
    drops = tuple(Drop(reason, count, count / rows) for reason, count in manifest.drops.items())
    return FunnelRow(name, rows, manifest.kept, drops, _note(name, manifest))


def _note(name: str, manifest: Manifest) -> str:
    kind = kind_of(name)
    table = kind.writes if kind else None
    if kind and isinstance(kind.again, EachFile):
        return _documents(manifest)
    if unknown := manifest.extra.get(UNKNOWN_KEYS):
        return f"fields of records without a pair: {frequent(unknown)}"
    if table is RESPONSE and manifest.kept < manifest.rows:
        return f"{manifest.rows - manifest.kept:,} prompts have an empty output"
    return _rewrites(manifest) if table is REWRITE else _rules(manifest)


def _documents(manifest: Manifest) -> str:
    """Count documents: each has a row with position 0, or with position -1 if it gave no segment."""
    documents = empty = 0
    for table in manifest.tables(["position"], kept=False):
        counts = Counter(table["position"].to_pylist())
        empty += counts[-1]
        documents += counts[-1] + counts[0]
    return f"from {documents:,} documents, {empty:,} of which gave no segment"


def _rewrites(manifest: Manifest) -> str:
    """Count the rewritten pairs, and the pairs that were kept as they were, by reason."""
    found: Counter[str] = Counter()
    for table in manifest.tables(["rewrite_reason"]):
        found.update(reason for reason in table["rewrite_reason"].to_pylist() if reason)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.most_common())
    return f"{manifest.kept - found.total():,} rewritten" + (f"; kept as they were: {reasons}" if found else "")


def _rules(manifest: Manifest) -> str:
    """Say how many rows each rule of a selection left, in their order; "" for other stages."""
    rules = manifest.extra.get("rules", [])
    return "left by each rule: " + ", ".join(f"{r['rule']} {r['kept']:,}" for r in rules) if rules else ""


@dataclass(frozen=True)
class TimingRow:
    """Time and work of one stage."""

    stage: str
    wall_s: float
    work_s: float
    rows: int
    tokens: int
    shards: int
    attempts: int
    nodes: int

    @property
    def rows_per_s(self) -> float | None:
        """Rows per second of wall clock; None if the stage made no rows."""
        return self.rows / self.wall_s if self.rows and self.wall_s > 0 else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens read and written per second of wall clock; None if no model ran."""
        return self.tokens / self.wall_s if self.tokens and self.wall_s > 0 else None


def timing(manifests: Manifests) -> list[TimingRow]:
    """Return the time and work of each stage, in the order of the run."""
    return [
        TimingRow(
            stage=name, wall_s=done.wall_s, work_s=done.work_s, rows=done.rows, tokens=done.tokens,
            shards=len(done.commits), attempts=done.attempts, nodes=len({commit.node for commit in done.commits}),
        )
        for name, done in manifests.items()
    ]  # fmt: skip
