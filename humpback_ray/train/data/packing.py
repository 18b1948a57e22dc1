"""Which worker computes which examples of a step, and in which micro-batches: pure functions of their lengths.

A micro-batch is a row of whole examples laid end to end, without attention across them (attention.py), so a step costs
its tokens and no padding. Every worker gets the same number of micro-batches, some of them empty if needed: ZeRO 3
gathers parameters in all workers at once and would hang otherwise.

Where a model computes short and long examples differently (engine/rope.py), the two kinds never share a micro-batch.
"""

import heapq
import math
from collections.abc import Sequence

Share = list[list[int]]
"""One worker's micro-batches of a step, in order; each lists its examples by their index in the step, or is empty."""


def pack(
    lengths: Sequence[int],
    workers: int,
    micro_batch_tokens: int,
    padded: bool = False,
    boundary: int | None = None,
) -> list[Share]:
    """Divide a step's examples: each once, longest first, always to the micro-batch with the fewest tokens.

    There are as few rounds as that allows. The fullest micro-batch has more tokens than the emptiest by at most the
    shortest example in it. The micro-batches of a round are of similar size. So the time that workers wait for each
    other in a step, summed over its rounds, is at most that of one example, and the tokens of any two workers differ by
    at most one example. With a boundary and examples on both sides of it, the first two sentences hold for each side,
    and workers may wait longer.

    Args:
        lengths: tokens of each example.
        workers: at least 1.
        micro_batch_tokens: most tokens in a micro-batch, unless it is a single example.
        padded: whether to count padding: each example as long as the longest of its micro-batch.
        boundary: no micro-batch holds both an example with more tokens than this and one with as many or fewer.

    Returns:
        Each worker's micro-batches; all workers have the same number, at least one.
    """
    kinds = [places for places in _kinds(lengths, boundary) if places]
    rounds = max(math.ceil(sum(min(n, micro_batch_tokens) for n in lengths) / (workers * micro_batch_tokens)), 1)
    bins: list[list[int]] = []
    while not bins:
        bins = _all_bins(kinds, lengths, workers * rounds)
        if not all(_fits(bin_, lengths, micro_batch_tokens, padded) for bin_ in bins):
            bins = []
        rounds += 1
    bins.sort(key=lambda bin_: -_tokens(bin_, lengths))
    shares: list[Share] = [[] for _ in range(workers)]
    loads = [0] * workers
    for first in range(0, len(bins), workers):
        lightest_first = sorted(range(workers), key=lambda worker: loads[worker])
        for worker, bin_ in zip(lightest_first, bins[first : first + workers], strict=True):
            shares[worker].append(bin_)
            loads[worker] += _tokens(bin_, lengths)
    return shares


def computed_tokens(shares: Sequence[Share], lengths: Sequence[int], padded: bool = False) -> int:
    """Return the number of tokens that all micro-batches compute, padding included; an empty one computes one token."""
    micros = [[lengths[place] for place in micro] or [1] for share in shares for micro in share]
    return sum(max(micro) * len(micro) if padded else sum(micro) for micro in micros)


def _kinds(lengths: Sequence[int], boundary: int | None) -> tuple[list[int], list[int]]:
    """Return the examples up to the boundary, and those beyond it."""
    short = [place for place, tokens in enumerate(lengths) if boundary is None or tokens <= boundary]
    return short, sorted(set(range(len(lengths))) - set(short))


def _all_bins(kinds: Sequence[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Distribute examples over `count` bins, each for one kind; [] if there are fewer bins than kinds.

    Each further bin goes to the kind with the most tokens per bin, unless each of its examples has a bin.
    """
    if len(kinds) > count:
        return []
    counts, tokens = [1] * len(kinds), [_tokens(places, lengths) for places in kinds]
    for _ in range(count - len(kinds)):
        scarce = [kind for kind, places in enumerate(kinds) if counts[kind] < len(places)]
        if scarce:
            counts[max(scarce, key=lambda kind: tokens[kind] / counts[kind])] += 1
    bins = [bin_ for places, some in zip(kinds, counts, strict=True) for bin_ in _spread(places, lengths, some)]
    return bins + [[] for _ in range(count - len(bins))]


def _spread(places: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Distribute examples over `count` bins by longest processing time first (Graham 1969), ties by index."""
    bins: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for place in sorted(places, key=lambda place: (-lengths[place], place)):
        tokens, number = emptiest[0]
        bins[number].append(place)
        heapq.heapreplace(emptiest, (tokens + lengths[place], number))
    return bins


def _fits(places: Sequence[int], lengths: Sequence[int], most: int, padded: bool) -> bool:
    longest = max((lengths[place] for place in places), default=0)
    tokens = longest * len(places) if padded else _tokens(places, lengths)
    return len(places) <= 1 or tokens <= most


def _tokens(places: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[place] for place in places)
