"""What the stages of a run took in, kept and dropped, how long they took, and how long the texts are.

Everything is read from manifests, except text lengths, scores and the metrics of training: those are streamed from the
tables one file at a time; of texts only sums are kept.
"""

import math
import re
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from humpback_ray.records import NOT_PASSED_ON
from humpback_ray.stages.enough import UNKNOWN_KEYS, frequent
from humpback_ray.stages.manifest import Manifest

Manifests = Mapping[str, Manifest]

ROUND = re.compile(r"round-(\d+)/(scores|curated)")
BINS_PER_POINT = 4
"""Resolution of the score histogram: expected scores are continuous, so whole points would hide their shape."""
GRADES, SUMS = range(1, 6), range(6)
"""The five-point rating scale (Li et al. 2023, arXiv:2308.06259, section 2.3), and that of sums of points."""
MOST_POINTS = 40
"""Of a scale without ends; scores outside count at its ends."""


@dataclass(frozen=True)
class Drop:
    """Rows of one stage that were lost for one reason."""

    reason: str
    rows: int
    share: float


@dataclass(frozen=True)
class FunnelRow:
    """One stage that makes a table."""

    stage: str
    rows: int
    """Rows that came in; each has one fate, so this is kept + dropped."""
    kept: int
    drops: tuple[Drop, ...]
    note: str

    @property
    def kept_share(self) -> float:
        """Share of the rows that were kept; 0 where there were none."""
        return self.kept / self.rows if self.rows else 0.0


def funnel(manifests: Manifests) -> list[FunnelRow]:
    """Return a row per stage that made a table, in the order of the run."""
    return [_funnel_row(name, manifest) for name, manifest in manifests.items() if has_table(manifest)]


def has_table(manifest: Manifest) -> bool:
    """Tell whether a stage made rows (models and the sample's web are files of another kind)."""
    return any(file.rows is not None for file in manifest.files)


def _funnel_row(name: str, manifest: Manifest) -> FunnelRow:
    rows = manifest.rows
    drops = tuple(Drop(reason, count, count / rows) for reason, count in manifest.drops.items())
    return FunnelRow(name, rows, manifest.kept, drops, _note(name, manifest))


def _note(name: str, manifest: Manifest) -> str:
    if name == "segments":
        return _documents(manifest)
    if unknown := manifest.extra.get(UNKNOWN_KEYS):
        return f"fields of records without a pair: {frequent(unknown)}"
    if name.startswith("evaluation/") and manifest.kept < manifest.rows:
        return f"{manifest.rows - manifest.kept:,} prompts have an empty output"
    return _rewrites(manifest) if name.endswith("/rewritten") else _rules(manifest)


def _documents(manifest: Manifest) -> str:
    """Count documents: each has a row of position 0, or, where it gave no segment, of position -1."""
    documents = empty = 0
    for table in manifest.tables(["position"], kept=False):
        counts = Counter(table["position"].to_pylist())
        empty += counts[-1]
        documents += counts[-1] + counts[0]
    return f"from {documents:,} documents, {empty:,} of which gave no segment"


def _rewrites(manifest: Manifest) -> str:
    """Count the pairs that were kept as they were, by why their rewrite is not used."""
    found: Counter[str] = Counter()
    for table in manifest.tables(["rewrite_reason"]):
        found.update(reason for reason in table["rewrite_reason"].to_pylist() if reason)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.most_common())
    return f"{manifest.kept - found.total():,} rewritten" + (f"; kept as they were: {reasons}" if found else "")


def _rules(manifest: Manifest) -> str:
    """Say what each rule of a selection left, in the order in which they applied; "" of other stages."""
    rules = manifest.extra.get("rules", [])
    return "left by each rule: " + ", ".join(f"{r['rule']} {r['kept']:,}" for r in rules) if rules else ""


@dataclass(frozen=True)
class TimingRow:
    """What one stage cost."""

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
        """Rows per second of wall clock; None where the stage made no rows."""
        return self.rows / self.wall_s if self.rows and self.wall_s > 0 else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens read and written per second of wall clock; None where no model ran."""
        return self.tokens / self.wall_s if self.tokens and self.wall_s > 0 else None


def timing(manifests: Manifests) -> list[TimingRow]:
    """Return what each stage cost, in the order of the run."""
    return [
        TimingRow(
            stage=name, wall_s=done.seconds, work_s=done.work_s, rows=done.rows, tokens=done.tokens,
            shards=len(done.commits), attempts=done.attempts, nodes=len({commit.node for commit in done.commits}),
        )
        for name, done in manifests.items()
    ]  # fmt: skip


def rounds(manifests: Manifests) -> list[int]:
    """Return the numbers of the rounds that have ratings or a selection, ascending."""
    return sorted({int(match[1]) for name in manifests if (match := ROUND.fullmatch(name))})


def models(manifests: Manifests) -> dict[str, Manifest]:
    """Return the models by name: the base where the run made it, `backward`, `m0`, `m1`, ..."""
    found = {"base": manifests["sample/base"]} if "sample/base" in manifests else {}
    return found | {
        name.removeprefix("models/"): done for name, done in manifests.items() if name.startswith("models/")
    }


@dataclass
class Moments:
    """Count, mean and standard deviation (n - 1) of whole numbers, from sums."""

    count: int = 0
    total: int = 0
    squares: int = 0

    def add(self, values: Iterable[int]) -> None:
        """Take more values into account."""
        for value in values:
            self.count += 1
            self.total += value
            self.squares += value * value

    @property
    def mean(self) -> float | None:
        """The mean; None of nothing."""
        return self.total / self.count if self.count else None

    @property
    def sd(self) -> float | None:
        """The standard deviation; None of fewer than two values."""
        if self.count < 2:
            return None
        return math.sqrt((self.squares - self.total * self.total / self.count) / (self.count - 1))


@dataclass(frozen=True)
class LengthRow:
    """Characters of instructions and outputs of one set of pairs: n, and (mean, sd) of each, None if unknown."""

    label: str
    rows: int
    instruction: tuple[float | None, float | None]
    output: tuple[float | None, float | None]
    share: float | None = None
    """Of all candidates."""
    paper: bool = False


PAPER_SEED = LengthRow("seed", 3200, (148, 322), (1072, 818), paper=True)
PAPER_A5 = LengthRow("A₅, round 2", 41_821, (115, 175), (1663, 616), 0.083, paper=True)
PAPER_A4 = LengthRow("A₄, round 2", 195_043, (206, 298), (1985, 649), 0.388, paper=True)
PAPER_ALL = LengthRow("all candidates", 502_133, (352, 134), (1722, 653), paper=True)
"""Li et al. 2023 (arXiv:2308.06259), its table of data statistics."""


def length_table(manifests: Manifests) -> list[LengthRow]:
    """Return the lengths of the run's pairs, each set beside the paper's."""
    candidates = manifests.get("candidates")
    total = candidates.kept if candidates else 0
    rows = [_lengths("seed", manifests["seed"])] if "seed" in manifests else []
    rows.append(PAPER_SEED)
    for number in rounds(manifests):
        if curated := manifests.get(f"round-{number}/curated"):
            rows.append(_lengths(f"kept in round {number}", curated, augmented=True, of=total))
        if rewritten := manifests.get(f"round-{number}/rewritten"):
            rows.append(_lengths(f"rewritten in round {number}", rewritten, augmented=True, of=total))
    rows += [PAPER_A5, PAPER_A4]
    rows += [_lengths("all candidates", candidates)] if candidates else []
    return [*rows, PAPER_ALL]


def _lengths(label: str, manifest: Manifest, augmented: bool = False, of: int = 0) -> LengthRow:
    instruction, output = Moments(), Moments()
    columns = ["instruction", "response", *(["source"] if augmented else [])]
    for table in manifest.tables(columns):
        rows = (
            table.filter(pa.array([s == "augmented" for s in table["source"].to_pylist()], pa.bool_()))
            if augmented
            else table
        )
        instruction.add(characters(rows["instruction"]))
        output.add(characters(rows["response"]))
    share = output.count / of if of else None
    return LengthRow(label, output.count, (instruction.mean, instruction.sd), (output.mean, output.sd), share)


def characters(texts: pa.ChunkedArray) -> list[int]:
    """Return the length of each text in characters; a missing text counts as empty."""
    lengths = pc.call_function("utf8_length", [texts])
    return [length or 0 for length in lengths.to_pylist()]


@dataclass(frozen=True)
class Ratings:
    """The scores of one round."""

    round: int
    rated: int
    failed: tuple[Drop, ...]
    """Ratings that gave no score, by reason; shares are of all pairs."""
    bins: tuple[int, ...]
    """Counts from the lowest point in steps of a quarter; the last one holds the highest point itself."""
    whole: tuple[int, ...]
    """Pairs whose score is nearest to each point (halves go up)."""
    lowest: float | None
    highest: float | None
    mean: float | None
    threshold: float | None
    """The score at which keeping starts: the recipe's, or that of the lowest pair kept."""
    kept: int | None
    """None where nothing was selected yet."""
    points: range = GRADES
    """The whole points of the scale."""
    passed_over: int = 0
    """Pairs that a cheap scorer kept from this one."""
    replies: int = 0
    """Replies, or forward passes, that were to give a score."""
    failed_first: int = 0
    """Those of them that gave none."""
    failed_last: int = 0
    """Those that gave none after they were asked for once more."""

    @property
    def pairs(self) -> int:
        """Pairs that were to be rated."""
        return self.rated + sum(drop.rows for drop in self.failed)

    @property
    def failed_samples_share(self) -> float:
        """Share of the replies that gave no score after the retry."""
        return self.failed_last / self.replies if self.replies else 0.0

    @property
    def failed_share(self) -> float:
        """Share of the pairs whose rating failed."""
        return sum(drop.share for drop in self.failed)


def nearest(score: float, points: range = GRADES) -> int:
    """Return the point of the scale nearest to a score; halves go up."""
    return min(max(math.floor(score + 0.5), points[0]), points[-1])


def points_of(lowest: float, highest: float) -> range:
    """Return the scale on which scores lie: the grades, the sums, or the whole numbers around them."""
    for points in (GRADES, SUMS):
        if points[0] <= lowest and highest <= points[-1]:
            return points
    top = math.ceil(highest)
    return range(max(math.floor(lowest), top - MOST_POINTS), top + 1)


def ratings(manifests: Manifests, number: int) -> Ratings | None:
    """Read the scores of a round; None where it was not rated."""
    scores = manifests.get(f"round-{number}/scores")
    if scores is None:
        return None
    found = array("d")
    replies, first, last = 0, 0, 0
    for table in scores.tables(["score", "samples", "first_failures"], kept=False):
        found.extend(table["score"].drop_null().to_pylist())
        samples = [sample for row in table["samples"].to_pylist() for sample in row or ()]
        failures = [failure for row in table["first_failures"].to_pylist() for failure in row or ()]
        replies, last = replies + len(samples), last + samples.count(None)
        first += len(failures) - failures.count(None)
    ends = (min(found), max(found), sum(found) / len(found)) if found else (None, None, None)
    points = points_of(min(found), max(found)) if found else GRADES
    bins, whole = [0] * ((len(points) - 1) * BINS_PER_POINT + 1), [0] * len(points)
    for score in found:
        bins[min(max(int((score - points[0]) * BINS_PER_POINT), 0), len(bins) - 1)] += 1
        whole[nearest(score, points) - points[0]] += 1
    curated = manifests.get(f"round-{number}/curated")
    drops = dict(scores.drops)
    passed_over = drops.pop(NOT_PASSED_ON, 0)
    failed = tuple(Drop(reason, rows, rows / (scores.rows - passed_over)) for reason, rows in drops.items())
    return Ratings(
        number, len(found), failed, tuple(bins), tuple(whole), *ends,
        threshold=threshold(curated) if curated else None, kept=curated.kept if curated else None, points=points,
        passed_over=passed_over, replies=replies, failed_first=first, failed_last=last,
    )  # fmt: skip


def threshold(curated: Manifest) -> float | None:
    """Return the recipe's threshold if it names one, else the lowest score kept (top-k has no other)."""
    named = find_number(curated.recipe, ("threshold", "min_score"))
    if named is not None:
        return named
    tables = curated.tables(["score"])
    return min((score for table in tables for score in table["score"].drop_null().to_pylist()), default=None)


def find_number(recipe: Any, names: Sequence[str]) -> float | None:
    """Return the first number that a nested recipe holds under one of some names, or None."""
    if not isinstance(recipe, Mapping):
        return None
    for name in names:
        if isinstance(recipe.get(name), int | float) and not isinstance(recipe[name], bool):
            return float(recipe[name])
    found = (find_number(value, names) for value in recipe.values())
    return next((number for number in found if number is not None), None)


@dataclass(frozen=True)
class ModelRow:
    """What a training run came to."""

    model: str
    parameters: int | None
    examples: int | None
    steps: int
    losses: tuple[tuple[int, float], ...] = field(repr=False)
    """(step, loss) where recorded; the loss is in nats per output token."""
    first_rate: float | None
    last_rate: float | None
    output_tokens: int | None
    """Output tokens trained on, summed over the steps."""
    wall_s: float
    validation: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """(step, loss) on the held-out seed pairs, where measured."""
    tokens_per_s: float | None = None
    """Of this and the two below the median over the steps; of memory the most."""
    mfu: float | None = None
    padding_share: float | None = None
    memory_bytes: int | None = None
    peak: str = ""
    """What the utilisation is a share of, in words."""

    @property
    def first_loss(self) -> float | None:
        """Mean of the first tenth of the losses; None where none was recorded."""
        return _mean(self.losses[: _tenth(self.losses)])

    @property
    def last_loss(self) -> float | None:
        """Mean of the last tenth of the losses; None where none was recorded."""
        return _mean(self.losses[-_tenth(self.losses) :])


def _tenth(values: Sequence[Any]) -> int:
    return max(1, len(values) // 10)


def _mean(points: Sequence[tuple[int, float]]) -> float | None:
    return sum(loss for _, loss in points) / len(points) if points else None


def model_rows(manifests: Manifests) -> list[ModelRow]:
    """Return what each model's training came to, the base first."""
    return [_model_row(name, manifest) for name, manifest in models(manifests).items()]


def _model_row(name: str, manifest: Manifest) -> ModelRow:
    extra = manifest.extra
    steps: list[Mapping[str, Any]] = manifest.metrics().to_pylist() or [
        {"step": step, "loss": loss} for step, loss in extra.get("metrics") or []
    ]

    def known(column: str) -> list[Any]:
        return [step[column] for step in steps if step.get(column) is not None]

    def median(column: str) -> float | None:
        return statistics.median(known(column)) if known(column) else None

    applied = [step for step in steps if not step.get("skipped")]
    rates, examples = known("learning_rate"), extra.get("examples")
    return ModelRow(
        model=name,
        parameters=extra.get("parameters"),
        examples=examples.get("kept") if isinstance(examples, Mapping) else examples,
        steps=extra.get("steps") or max(known("step"), default=0),
        losses=tuple((step["step"], step["loss"]) for step in applied if step["loss"] is not None),
        first_rate=rates[0] if rates else None,
        last_rate=rates[-1] if rates else None,
        output_tokens=sum(known("output_tokens")) or None,
        wall_s=manifest.seconds,
        validation=tuple((step["step"], loss) for step in steps if (loss := step.get("validation_loss")) is not None),
        tokens_per_s=median("tokens_per_s"),
        mfu=median("mfu"),
        padding_share=median("padding_share"),
        memory_bytes=max(known("memory_bytes"), default=None),
        peak=extra.get("peak") or "",
    )
