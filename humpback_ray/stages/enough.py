"""Stop a run whose inputs gave too few rows, or whose rows failed too often, before anything is trained on them.

A stage that keeps fewer rows than its recipe's `min_kept` fails at once. One line gives the count, the most frequent
drop reasons and the fields of the records. Its table stays, so you can inspect the rows.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice

from humpback_ray import storage
from humpback_ray.config import short
from humpback_ray.inputs.forms import keys_of
from humpback_ray.inputs.recordfiles import records
from humpback_ray.records import NOT_PASSED_ON, QUARANTINED
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.manifest import Manifest

MOST_REASONS = 3
UNKNOWN_KEYS = "unknown_keys"
"""In a manifest: the fields of records that no form fits, each with the number of such records."""
_READ = 100
"""Number of records of a file whose keys are read."""
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def refuse_few(manifest: Manifest, least: int, field: str, keys: Callable[[], str]) -> None:
    """Raise if a stage kept fewer rows than it must.

    Args:
        manifest: of the stage.
        least: the number it must keep.
        field: the configuration key to blame.
        keys: returns the fields of the records that were read; "" if unknown.

    Raises:
        StageFailed: with both numbers and the reasons.
    """
    if manifest.kept >= least:
        return
    drops = sorted(manifest.drops.items(), key=lambda drop: (-drop[1], drop[0]))[:MOST_REASONS]
    why = ", ".join(f"{reason} {count:,}" for reason, count in drops) or "nothing"
    seen = f"; keys seen: {names}" if (names := keys()) else ""
    raise StageFailed(
        f"{manifest.stage}: {manifest.kept:,} of {manifest.rows:,} rows were kept, fewer than {field} = {least:,}; "
        f"dropped: {why}{seen}; use other inputs, or change the recipe to fit these (the rows are in {manifest.uri})"
    )


def refuse_failures(manifest: Manifest, reasons: Collection[str], most: float, field: str) -> None:
    """Raise if a larger share of a stage's rows failed than its recipe allows; filtered rows do not count as failed.

    Rows that a chain of scorers did not pass on were not tried, so they do not count either way.

    Raises:
        StageFailed: with both numbers and the reasons.
    """
    failed = {reason: count for reason, count in manifest.drops.items() if reason in {*reasons, QUARANTINED}}
    tried = manifest.rows - manifest.drops.get(NOT_PASSED_ON, 0)
    refuse_share(manifest, sum(failed.values()), tried, f"rows failed ({short(failed)})", most, field)


def refuse_share(manifest: Manifest, failed: int, tried: int, what: str, most: float, field: str) -> None:
    """Raise if a larger share failed than a recipe allows; filtered rows do not count as failed.

    Args:
        manifest: of the stage. Its table stays, so a run with a higher share resumes from it.
        failed: number of failures.
        tried: number of tries.
        what: what failed, and how: "rewrites failed".
        most: the largest share allowed.
        field: the configuration key that sets it.

    Raises:
        StageFailed: with both numbers.
    """
    if failed > most * tried:
        raise StageFailed(
            f"{manifest.stage}: {failed:,} of {tried:,} ({failed / tried:.1%}) {what}, more than {field} = {most:g} "
            f"allows; look at the rows in {manifest.uri}, or raise the limit to continue with the others"
        )


def frequent(keys: Mapping[str, int]) -> str:
    """Return the most frequent sets of record fields, in words."""
    most = sorted(keys.items(), key=lambda found: (-found[1], found[0]))[:MOST_REASONS]
    return "; ".join(f"({names}) in {count:,}" for names, count in most)


def keys_in(files: Iterable[storage.InputFile]) -> str:
    """Return the fields of the first records of the first JSON file, in words; "" if there is no JSON file."""
    for file in files:
        if any(suffix in file.name.lower() for suffix in JSON_SUFFIXES):
            counts: dict[str, int] = {}
            with storage.open_input(file.uri) as stream:
                for record in islice(records(stream), _READ):
                    keys = record.fault or keys_of(record.value)
                    counts[keys] = counts.get(keys, 0) + 1
            return f"{frequent(counts)} of the first records of {file.name}"
    return ""
