"""Errors that say that memory ran out, and what a worker was doing then.

The message alone decides for errors of CUDA's libraries and of PyTorch's allocator on the host, which have no types of
their own. Workers that the kernel or Ray kill for the memory of their node raise nothing; Ray counts them as lost.
"""

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence

from humpback_ray.train.data.examples import Example
from humpback_ray.train.job import TrainingStopped

_GPU = re.compile(
    r"(cuda|hip|driver)\w*\]?( driver| runtime)?( error| failure| failed)?[^a-z\n]*out of memory"
    r"|(cuda|hip)_?error_?(out_?of_?memory|memory_?allocation)"
    r"|(cu|hip)(blas|dnn|solver|sparse|fft)\w*_alloc(ation)?_failed|failed to cuda (m|c|host )alloc",
    re.IGNORECASE,
)
_HOST = re.compile(r"(can't|cannot) allocate memory|not enough memory|std::bad_alloc", re.IGNORECASE)


class Exhausted(RuntimeError):
    """Memory ran out."""

    def __init__(self, cause: BaseException, lengths: Sequence[int]) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.lengths = lengths
        """Tokens of each example of the micro-batch that was computed; empty if none was."""
        self.backward = True
        """Whether activations were kept for a backward pass."""
        self.where: list[str] = []
        """Activities, the widest first: "at step 3", "in the update"."""


@contextlib.contextmanager
def doing(what: str = "", micro: Sequence[Example] = (), backward: bool = True) -> Iterator[None]:
    """Say what the block does, in case its memory runs out.

    Args:
        what: such as "at step 3"; "" for computing a micro-batch.
        micro: the examples of the micro-batch.
        backward: False if no backward pass follows.

    Raises:
        Exhausted: memory ran out.
    """
    try:
        yield
    except Exception as error:
        lengths = [example.length for example in micro]
        found = exhausted(error, lengths)
        if found is None:
            raise
        found.backward &= backward
        found.where.insert(0, what or micro_words(lengths))
        raise found from found.cause


def exhausted(error: BaseException, lengths: Sequence[int] = ()) -> Exhausted | None:
    """Return an error that memory ran out as `Exhausted`, with the cause that says so; None for any other error.

    An error in the cleanup after such an error is due to it too. A verdict stays what it is, even if it quotes such an
    error of another process.
    """
    cause: BaseException | None = None if isinstance(error, TrainingStopped) else error
    while cause is not None and not isinstance(cause, Exhausted):
        if on_gpu(cause) or on_host(cause):
            return Exhausted(cause, lengths)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return cause


def on_gpu(error: BaseException) -> bool:
    """Tell whether an error says that a GPU's memory ran out."""
    import torch

    named = isinstance(error, torch.OutOfMemoryError)
    return named or (isinstance(error, RuntimeError) and bool(_GPU.search(str(error))))


def on_host(error: BaseException) -> bool:
    """Tell whether an error says that the host's memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_HOST.search(str(error))))


def micro_words(lengths: Sequence[int]) -> str:
    """Describe a micro-batch by the lengths of its examples."""
    if not lengths:
        return "in an empty micro-batch"
    if len(lengths) == 1:
        return f"in a micro-batch of one example with {lengths[0]:,} tokens"
    return (
        f"in a micro-batch of {len(lengths)} examples with {sum(lengths):,} tokens, the longest with {max(lengths):,}"
    )
