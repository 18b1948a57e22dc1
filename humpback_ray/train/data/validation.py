"""The seed pairs that are held out of training, to measure the loss on pairs that a model has not seen.

The hash of a pair's id decides, so the same pairs are held out for every model of a run, in both directions, and for
every run with the same share. Augmented pairs are never held out: the previous model wrote their instructions.
"""

from humpback_ray.records import seed_of
from humpback_ray.train.data.examples import Examples


def is_held_out(row_id: str, source: str, share: float) -> bool:
    """Tell whether a pair is held out for validation."""
    return source == "seed" and seed_of(row_id, "validation") < share * 2**63


def split(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Return the examples to train on and those held out.

    Raises:
        ValueError: there are seed pairs, but the share holds none of them out.
    """
    trained, held = examples.split(lambda row_id, source: is_held_out(row_id, source, share))
    if share and not held and (seeds := len(trained.split(lambda _, source: source == "seed")[1])):
        raise ValueError(
            f"validation_share = {share:g} holds out none of {seeds} seed pairs; raise it, or set it to 0 to train on "
            "all of them"
        )
    return trained, held
