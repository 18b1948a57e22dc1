"""Which seed pairs are held out of training, to measure what a model has not learned by heart.

The hash of a pair's id decides, so the same pairs are held out of every model of a run, in either direction, and of
every run with the same share. Augmented pairs are never held out: the model before wrote their instructions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from humpback_ray.records import seed_of


def is_held_out(pair: Mapping[str, Any], share: float) -> bool:
    """Tell whether a row of PAIR is for validation."""
    return pair["source"] == "seed" and seed_of(pair["id"], "validation") < share * 2**63


def split(pairs: Iterable[Mapping[str, Any]], share: float) -> tuple[list[Any], list[Any]]:
    """Return the pairs to train on and those held out."""
    parts: tuple[list[Any], list[Any]] = ([], [])
    for pair in pairs:
        parts[is_held_out(pair, share)].append(pair)
    return parts
