"""Which worker computes which examples of a step, and in which micro-batches: pure functions of their lengths.

A micro-batch is a row of whole examples laid end to end, without attention across them (attention.py), so a step costs
its tokens and no padding. Every worker gets the same number of micro-batches, some of them empty if needed: ZeRO 3
gathers parameters in all workers at once and would hang otherwise.
"""

import heapq
import math
from collections.abc import Sequence

Share = list[list[int]]
"""One worker's micro-batches of a step, in order; each lists its examples by their index in the step, or is empty."""


def pack(lengths: Sequence[int], workers: int, micro_batch_tokens: int, padded: bool = False) -> list[Share]:
    """Divide a step's examples: each once, longest first, always to the micro-batch with the fewest tokens.

    There are as few rounds as that allows. The fullest micro-batch has more tokens than the emptiest by at most the
    shortest example in it. The micro-batches of a round are of similar size. So the time that workers wait for each
    other in a step, summed over its rounds, is at most that of one example, and the tokens of any two workers differ by
    at most one example.

    Args:
        lengths: tokens of each example.
        workers: at least 1.
        micro_batch_tokens: most tokens in a micro-batch, unless it is a single example.
        padded: whether to count padding: each example as long as the longest of its micro-batch.

    Returns:
        Each worker's micro-batches; all workers have the same number, at least one.
    """
    rounds = max(math.ceil(sum(min(n, micro_batch_tokens) for n in lengths) / (workers * micro_batch_tokens)), 1)
    while not all(_fits(bin_, lengths, micro_batch_tokens, padded) for bin_ in _spread(lengths, workers * rounds)):
        rounds += 1
    bins = sorted(_spread(lengths, workers * rounds), key=lambda bin_: -_tokens(bin_, lengths))
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


def _spread(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Distribute examples over `count` bins by longest processing time first (Graham 1969), ties by index."""
    bins: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
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
