"""Lengths of instructions and responses, beside the paper's; computed from sums, without keeping texts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from humpback_ray.graph import each_round
from humpback_ray.report.funnel import Manifests
from humpback_ray.report.ratings import rounds
from humpback_ray.stages.manifest import Manifest


@dataclass
class Moments:
    """Count, mean and standard deviation (n - 1) of whole numbers, from sums."""

    count: int = 0
    total: int = 0
    squares: int = 0

    def add(self, values: Iterable[int]) -> None:
        """Add values."""
        for value in values:
            self.count += 1
            self.total += value
            self.squares += value * value

    @property
    def mean(self) -> float | None:
        """The mean; None without values."""
        return self.total / self.count if self.count else None

    @property
    def sd(self) -> float | None:
        """The standard deviation; None for fewer than two values."""
        if self.count < 2:
            return None
        return math.sqrt((self.squares - self.total * self.total / self.count) / (self.count - 1))


@dataclass(frozen=True)
class LengthRow:
    """Lengths in characters of one set of pairs: n, and (mean, sd) of instructions and outputs, None if unknown."""

    label: str
    rows: int
    instruction: tuple[float | None, float | None]
    output: tuple[float | None, float | None]
    share: float | None = None
    """Share of all candidates."""
    paper: bool = False


PAPER_SEED = LengthRow("seed", 3200, (148, 322), (1072, 818), paper=True)
PAPER_A5 = LengthRow("A₅, round 2", 41_821, (115, 175), (1663, 616), 0.083, paper=True)
PAPER_A4 = LengthRow("A₄, round 2", 195_043, (206, 298), (1985, 649), 0.388, paper=True)
PAPER_ALL = LengthRow("all candidates", 502_133, (352, 134), (1722, 653), paper=True)
"""Li et al. 2023 (arXiv:2308.06259), its table of data statistics."""


def length_table(manifests: Manifests) -> list[LengthRow]:
    """Return the lengths of the run's pairs, each set next to the paper's."""
    candidates = manifests.get("candidates")
    total = candidates.kept if candidates else 0
    rows = [_lengths("seed", manifests["seed"])] if "seed" in manifests else []
    rows.append(PAPER_SEED)
    for number in rounds(manifests):
        if curated := each_round(manifests, "round-{t}/curated").get(number):
            rows.append(_lengths(f"kept in round {number}", curated, augmented=True, of=total))
        if rewritten := each_round(manifests, "round-{t}/rewritten").get(number):
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
