"""Which of several workers' errors is the cause: one that ends fails the collectives of all others."""

from collections.abc import Mapping

from humpback_ray.train.job import OutOfMemory, TrainingStopped

_COLLATERAL = ("gloo", "nccl", "connection closed", "connection reset", "socket", "barrier")
"""Words in the errors that workers raise because another worker died; these are RuntimeErrors of PyTorch."""


def first_cause(failures: Mapping[int, Exception]) -> tuple[int, Exception] | None:
    """Return rank and error of a worker that failed by itself, not because another worker did.

    If memory ran out anywhere, it is that error: a worker that waits for such a one may fail in any way.
    """
    ranked = sorted(failures.items(), key=lambda item: (_place(item[1]), item[0]))
    return ranked[0] if ranked else None


def _place(error: Exception) -> int:
    if isinstance(error, OutOfMemory):
        return 0
    torch_said = isinstance(error, RuntimeError) and not isinstance(error, TrainingStopped)
    return 2 if torch_said and any(word in str(error).lower() for word in _COLLATERAL) else 1
