"""Which seed pairs are held out of training, to measure what a model has not learned by heart.

The hash of a pair's id decides, so the same pairs are held out of every model of a run, in either direction, and of
every run with the same share. Augmented pairs are never held out: the model before wrote their instructions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from humpback_ray.records import seed_of


def is_held_out(row_id: str, source: str, share: float) -> bool:
    """Tell whether a pair is for validation."""
    return source == "seed" and seed_of(row_id, "validation") < share * 2**63


def split(pairs: Iterable[Mapping[str, Any]], share: float) -> tuple[list[Any], list[Any]]:
    """Return the pairs to train on and those held out.

    Raises:
        ValueError: there are seed pairs, of which the share holds out none.
    """
    parts: tuple[list[Any], list[Any]] = ([], [])
    for pair in pairs:
        parts[is_held_out(pair["id"], pair["source"], share)].append(pair)
    trained, held = parts
    seeds = sum(pair["source"] == "seed" for pair in trained)
    if share and seeds and not held:
        raise ValueError(
            f"validation_share = {share:g} holds out none of {seeds} seed pairs; raise it, or set it to 0 to train on "
            "all of them"
        )
    return trained, held
