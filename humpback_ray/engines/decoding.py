"""A transformers model on many sequences: prompts are read in groups, and each step writes one token per sequence.

A sequence that ends leaves at once and another takes its place. So a step costs only its live sequences, and no
sequence waits for the longest reply. A prefix that prompts share (the grades of a rating prompt) is read once. If
memory runs out, all sequences wait again, and from then on at most half as many tokens are held at once.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, cast

from humpback_ray.engines.batching import Job
from humpback_ray.engines.graphs import Graphs
from humpback_ray.engines.rope import turning_point
from humpback_ray.engines.sampling import Dice, next_tokens
from humpback_ray.engines.slots import GRAIN, Prefix, Slots, rounded
from humpback_ray.engines.tokens import NOT_FINITE
from humpback_ray.engines.types import CachedLayer, CausalModel

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

READ_TOKENS = 8192
"""Most prompt tokens, padding included, in a forward pass; a longer prompt is read alone."""
SCORE_VALUES = 1 << 27
"""Most logits in a forward pass that scores: 512 MB in float32."""
SHARED_TOKENS = 16
"""Shortest shared prefix that is worth keeping."""


Wanted = Mapping[tuple[int, ...], Sequence[tuple[int, int]]]
"""For each sequence of token ids: places, counted from the end (-1: after the last token), and a token at each."""


class BatchRow:
    """A sequence in progress."""

    def __init__(self, job: Job) -> None:
        self.job, self.dice = job, Dice(job.request)
        self.written: list[int] = []

    @property
    def left(self) -> int:
        """Number of tokens that it may still write."""
        return self.job.request.max_new_tokens - len(self.written)


class Decoder:
    """A causal language model and the sequences that it writes; call its methods in torch's inference mode.

    Args:
        model: a transformers model in evaluation mode whose layers all use attention.
        end_ids: tokens that end a reply.
        pad_id: any token.
        most_rows: most sequences held at once.
        most_tokens: most tokens held at once, padding included; a single sequence may have more.
        graphs: recorded decode steps of the model, if it can have any.

    Raises:
        ValueError: the model keeps state other than keys and values.
    """

    def __init__(
        self,
        model: CausalModel,
        end_ids: Sequence[int],
        pad_id: int,
        most_rows: int,
        most_tokens: int,
        graphs: Graphs | None = None,
    ) -> None:
        self.graphs, self.turn = graphs, turning_point(model)
        self.model, self.end_ids, self.pad_id = model, frozenset(end_ids), pad_id
        self.most_rows, self.most_tokens, self.most_read = most_rows, most_tokens, READ_TOKENS
        self.rows: list[BatchRow] = []
        self.prefix: Prefix | None = None
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds or getattr(model, "_is_stateful", False):
            raise ValueError(
                f"the transformers engine only runs models whose layers all use attention; {model.config.model_type} "
                f"at {model.config.name_or_path} has {', '.join(sorted(kinds)) or 'recurrent'} layers; use the vllm "
                "engine"
            )
        self.layer_count = config.num_hidden_layers
        self.slots = Slots(self.layer_count)

    def fitting(self, jobs: Sequence[Job]) -> int:
        """Return how many of the first jobs may join now; 0 if they have to wait.

        While replies are in progress, new jobs join once a quarter of the batch is free, since a pass over few prompts
        costs nearly as much as one over many.
        """
        if self.rows and self.most_rows - len(self.rows) < max(1, self.most_rows // 4):
            return 0
        read, width = 0, self.slots.end - self.slots.begin
        after = max((row.left for row in self.rows), default=0)
        for count, job in enumerate(jobs, start=1):
            rows, read = len(self.rows) + count, max(read, len(job.ids))
            width, after = max(width, read), max(after, job.request.max_new_tokens)
            held = rows * rounded(width + after, GRAIN)
            if rows > self.most_rows or held > self.most_tokens or count * read > self.most_read:
                return max(count - 1, 0 if self.rows else 1)
        return len(jobs)

    def join(self, jobs: Sequence[Job]) -> list[BatchRow]:
        """Read the prompts of jobs and write the first token of each; return the rows that ended with it."""
        return self._begin([BatchRow(job) for job in jobs])

    def _begin(self, rows: Sequence[BatchRow]) -> list[BatchRow]:
        """Read all tokens of rows and write the next one of each; return the rows that ended with it."""
        after = max(row.left for row in [*self.rows, *rows])
        logits_BKV, starts = self._read([[*row.job.ids, *row.written] for row in rows], after, keep=1)
        self.rows += rows
        self.slots.starts += starts
        return self._write(logits_BKV[:, -1], rows)

    def step(self) -> list[BatchRow]:
        """Write one more token of every row; return those that ended."""
        ended, slots = self._turn(), self.slots
        if not self.rows:
            return ended
        if self.graphs:
            self.graphs.settle(slots)
        slots.reserve(len(self.rows), slots.end - slots.begin, 1, self.most_rows, self.most_tokens)
        last = [row.written[-1] for row in self.rows]
        with slots.writing():
            logits_BV = self.graphs.step(slots, last, self._step) if self.graphs else self._step()
        return ended + self._write(logits_BV, self.rows)

    def _step(self) -> "torch.Tensor":
        """Return the logits after each row's last token, [B, V]."""
        seen = slice(self.slots.begin, self.slots.end + 1)
        return self._forward([row.written[-1:] for row in self.rows], self.slots.starts, seen, keep=1)[:, -1]

    def _turn(self) -> list[BatchRow]:
        """Read rows again that are now too long for the model's first frequencies; return those that ended."""
        if self.turn is None:
            return []
        places = [p for p, row in enumerate(self.rows) if len(row.job.ids) + len(row.written) == self.turn + 1]
        turning = [self.rows[place] for place in places]
        self.rows = [self.rows[place] for place in self.slots.drop(places)]
        return [ended for row in turning for ended in self._begin([row])]

    def _forward(self, ids: Sequence[Sequence[int]], starts: Sequence[int], seen: slice, keep: int) -> "torch.Tensor":
        """Run the model on ids [B, T] in the last T of the `seen` columns; return logits, [B, keep, V]."""
        import torch

        given_BN = torch.tensor([[start, *row] for start, row in zip(starts, ids, strict=True)]).to(self.model.device)
        starts_B1, ids_BT = given_BN[:, :1], given_BN[:, 1:]
        columns_C = torch.arange(seen.start, seen.stop, device=ids_BT.device)
        return self.model(
            ids_BT,
            attention_mask=columns_C >= starts_B1 if max(starts) > seen.start else None,
            position_ids=(columns_C[-ids_BT.shape[1] :] - starts_B1).clamp_(min=0),
            past_key_values=self.slots.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits[:, -keep:]

    def _write(self, logits_BV: "torch.Tensor", rows: Sequence[BatchRow]) -> list[BatchRow]:
        """Give each row its next token; remove and return the rows that ended."""
        tokens, first = next_tokens(logits_BV, [row.dice for row in rows]), len(self.rows) - len(rows)
        for row, token in zip(rows, tokens, strict=False):  # a graph has more rows
            row.written.append(token)
        self.slots.blank([first + place for place, token in enumerate(tokens) if token == NOT_FINITE])
        last = [row.written[-1] for row in self.rows]
        over = self.end_ids | {NOT_FINITE}
        ended = [place for place, row in enumerate(self.rows) if last[place] in over or not row.left]
        out = [self.rows[place] for place in ended]
        if out:
            self.rows = [self.rows[place] for place in self.slots.drop(ended)]
        return out

    def _read(self, sequences: Sequence[Sequence[int]], after: int, keep: int) -> "tuple[torch.Tensor, list[int]]":
        """Read sequences into slots after the rows; return logits of the last places, [B, keep, V], and starts."""
        lengths = [len(ids) for ids in sequences]
        alike = self.turn is None or max(lengths) <= self.turn  # else a prefix alone has other frequencies
        prefix = self._shared_prefix(sequences, min(lengths) - keep) if alike else None
        known = len(prefix.ids) if prefix else 0
        longest = max(lengths) - known
        self.slots.reserve(len(self.rows) + len(sequences), max(lengths), after, self.most_rows, self.most_tokens)
        own = [[self.pad_id] * (longest + known - len(ids)) + list(ids[known:]) for ids in sequences]
        with self.slots.reading(lengths, longest, prefix) as starts:
            seen = slice(self.slots.end - longest - known, self.slots.end)
            return self._forward(own, starts, seen, keep), starts

    def _shared_prefix(self, sequences: Sequence[Sequence[int]], most: int) -> Prefix | None:
        """Return the prefix that sequences share, at most `most` tokens, read once; None if it is too short."""
        ordered = sorted(map(list, sequences))
        common = _common(ordered[0], ordered[-1])[:most]
        if self.prefix and (known := len(_common(common, self.prefix.ids))) >= SHARED_TOKENS:
            return self.prefix.cut(known)
        if len(sequences) == 1 or len(common) < SHARED_TOKENS:
            return None
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        self.model(
            torch.tensor([common], device=self.model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        layers = cast("list[CachedLayer]", cache.layers)
        self.prefix = Prefix(tuple(common), [layer.keys for layer in layers], [layer.values for layer in layers])
        return self.prefix

    def logprobs(self, wanted: Wanted) -> dict[tuple[int, ...], list[float]]:
        """Return log p of tokens at given places of sequences.

        Returns:
            The natural logarithms of the probabilities by sequence, float32.
        """
        found: dict[tuple[int, ...], list[float]] = {}
        vocabulary = self.model.config.get_text_config().vocab_size
        group: list[tuple[int, ...]] = []
        for sequence in sorted(wanted, key=len):
            keep = max(-place for other in [*group, sequence] for place, _ in wanted[other])
            count = len(group) + 1
            over = count * len(sequence) > self.most_read or count * keep * vocabulary > SCORE_VALUES
            if group and (over or count > self.most_rows):
                found |= self._logprobs(group, wanted)
                group = []
            group.append(sequence)
        return found | self._logprobs(group, wanted)

    def _logprobs(self, group: Sequence[tuple[int, ...]], wanted: Wanted) -> dict[tuple[int, ...], list[float]]:
        import torch

        keep = max(-place for sequence in group for place, _ in wanted[sequence])
        asked = [(b, keep + place, token) for b, sequence in enumerate(group) for place, token in wanted[sequence]]
        rows_N, places_N, tokens_N = torch.tensor(asked).T.to(self.model.device)
        logits_BKV, _ = self._read(group, 0, keep)
        norms_BK = torch.logsumexp(logits_BKV.float(), -1)
        values_N = logits_BKV[rows_N, places_N, tokens_N].float() - norms_BK[rows_N, places_N]
        found = torch.cat([values_N, norms_BK.isfinite().all(-1)]).tolist()  # waits for the device, once
        values, finite = iter(found[: len(asked)]), found[len(asked) :]
        self.slots.blank([len(self.rows) + b for b, is_finite in enumerate(finite) if not is_finite])
        return {sequence: [next(values) for _ in wanted[sequence]] for sequence in group}

    def shrink(self) -> None:
        """Hold half as many tokens from now on, because memory ran out."""
        held = self.slots.most_needed or self.most_tokens  # 0 while the first prefix is being read
        self.most_tokens = max(1, min(self.most_tokens, held) // 2)
        self.most_read = max(1, self.most_read // 2)
        logger.warning("out of memory; holding at most %d tokens at once from now on", self.most_tokens)

    def clear(self) -> None:
        """Drop all rows, buffers and graphs."""
        self.rows, self.slots, self.prefix = [], Slots(self.layer_count), None
        if self.graphs:
            self.graphs.drop()


def _common(first: Sequence[int], second: Sequence[int]) -> Sequence[int]:
    """Return the prefix that two sequences share."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]
