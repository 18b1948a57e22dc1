"""Decode steps of fixed shapes, recorded once as CUDA graphs and replayed: one launch instead of a thousand.

Python starts the kernels of a step one by one, on an H100 about 1 ms per layer, while the GPU needs a quarter of that.
A graph starts all at once, but only repeats what was recorded: the same kernels, shapes and addresses. So a step reads
tokens, starts and the column that it writes from one tensor of inputs, sees the first columns of the buffers (`slots`),
and leaves its logits in one tensor. Rows and columns are rounded up, and a mask hides the rest. A graph also serves
smaller steps: up to `PADDING` for good, and beyond that until their own size is recorded, since a plain step takes
longer. So a stage needs a dozen or two. When the buffers' memory grows, its graphs go.

A graph is trusted after its results at two columns agreed with the same step without a graph, and with the decoder's
plain step. If they do not, or if recording fails, one warning says why, and from then on every step is a plain one.
Given up: models over several devices, and models that look at positions on the host.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from humpback_ray.engines.attention import NAME
from humpback_ray.engines.batching import RunAgain
from humpback_ray.engines.recorder import CudaRecorder, Recorder
from humpback_ray.engines.rope import looks_at_positions
from humpback_ray.engines.slots import GRAIN, Slots, rounded
from humpback_ray.engines.types import CausalModel

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

LEAST_ROWS = 8
"""Rows are rounded up to multiples of this, as columns are to multiples of `slots.GRAIN`."""
PADDING = 1.2
"""Most rows times columns of a graph that fits a step, as a multiple of those that the step needs."""
SPARE_TOKENS = 4096
"""Rows times columns that cost little besides: a 7B Llama's weights are as large as 27,000 tokens' keys and values."""
USES = 12
"""Steps of a shape without a graph that fits before it is recorded: recording and trying take about as long."""
TRIALS = 2
"""Columns at which a graph is compared before it is trusted."""
MOST_GRAPHS, MOST_BYTES = 32, 1 << 30
"""Bounds on the graphs held at once, and on the memory that they share."""
NOISE = ((1e-4, 1e-3), (5e-3, 0.15))
"""Largest relative distance of logits, in float32 and in 16 bits: between runs of the same kernels, and between kernels
for different shapes. Measured on a CPU, 32 layers: 0 and 1e-5, in bfloat16 0 and 0.01 to 0.05. A step with a wrong
column is 0.02 away in a model that hardly attends to earlier tokens, and 1.2 away in one that does."""


class FixedStep:
    """A decode step of the first rows and columns of the buffers, always with the same shapes and addresses.

    Args:
        model: a model whose attention is ours (`attention.share_heads`).
        slots: the sequences.
        shape: number of rows and of columns, and the columns that buffers have.
        inputs_N3: token, first column and column to write of each row, int64; at least as many rows.
        logits_NV: where the logits go; at least as many rows.
    """

    def __init__(
        self,
        model: CausalModel,
        slots: Slots,
        shape: tuple[int, int, int],
        inputs_N3: "torch.Tensor",
        logits_NV: "torch.Tensor",
    ) -> None:
        self.model, self.slots, self.shape = model, slots, shape
        self.inputs_R3, self.logits_RV = inputs_N3[: shape[0]], logits_NV[: shape[0]]

    def __call__(self) -> None:
        """Write one column of every row, and the logits."""
        import torch

        rows, columns, _ = self.shape
        ids_R1, starts_R1, at_R1 = self.inputs_R3.split(1, dim=-1)
        columns_C = torch.arange(columns, device=ids_R1.device)
        with self.slots.fixing(rows, columns, at_R1[0]):
            output = self.model(
                ids_R1,
                attention_mask=(columns_C >= starts_R1) & (columns_C <= at_R1),
                position_ids=at_R1 - starts_R1,
                past_key_values=self.slots.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.logits_RV.copy_(output.logits[:, -1])


class _Graph:
    """A recorded step, and what its trials showed."""

    def __init__(self, step: FixedStep, replay: Callable[[], None]) -> None:
        self.step, self.replay = step, replay
        self.tried_at: set[int] = set()


class Graphs:
    """The graphs of a model's decode steps, and when to use them.

    Args:
        model: a model on one device whose attention is ours and which never looks at positions on the host.
        recorder: records on that device.
        most_rows: most rows of a step.
    """

    def __init__(self, model: CausalModel, recorder: Recorder, most_rows: int) -> None:
        import torch

        self.model, self.recorder, self.most_rows = model, recorder, most_rows
        self.off: str | None = None
        """Why there are no graphs any more; None: there are."""
        self.recorded = self.replays = self.plain_steps = self.drops = self.held_bytes = 0
        self.record_s = 0.0
        self.held: dict[tuple[int, int, int], _Graph | None] = {}
        """By rows, columns, and the columns that buffers have; None: a plain step was faster."""
        self._uses: Counter[tuple[int, int, int]] = Counter()
        self._buffers: tuple[Slots, int] | None = None
        self._inputs_N3 = torch.zeros((most_rows, 3), dtype=torch.long, device=model.device)
        self._logits_NV: torch.Tensor | None = None

    def settle(self, slots: Slots) -> None:
        """Move rows to the front once the unused columns before them, which a graph sees, are worth it."""
        if not self.off and slots.begin >= max(GRAIN // 2, slots.end // 8):
            slots.move(slots.end - slots.begin)

    def step(self, slots: Slots, last: Sequence[int], plain: Callable[[], "torch.Tensor"]) -> "torch.Tensor":
        """Write one more column of every row.

        Args:
            slots: where to; prepared for a plain step.
            last: each row's last token.
            plain: takes the same step, of just the shape that is needed; returns logits, [rows, V].

        Returns:
            The logits, [N >= rows, V], valid until the next step; a row that nobody asked for may have any, and if
            they are not finite, its keys and values may not be finite either.

        Raises:
            RunAgain: a graph was wrong, so it may have overwritten anything. No graph is used from then on.
        """
        if self._buffers is None or self._buffers[0] is not slots or self._buffers[1] != slots.allocations:
            self.drop()
            self._buffers = slots, slots.allocations
        graph = None if self.off else self._graph(slots, last)
        if graph is None:
            self.plain_steps += 1
            logits_BV = plain()
            if self._logits_NV is None and not self.off:
                self._logits_NV = logits_BV.new_zeros((self.most_rows, logits_BV.shape[-1]))
            return logits_BV
        self._give(slots, last, graph.step.shape[0])
        if len(graph.tried_at) < TRIALS:
            return self._try(graph, slots, len(last), plain)
        graph.replay()
        self.replays += 1
        return graph.step.logits_RV

    def drop(self) -> None:
        """Forget all graphs, since buffers have moved or memory is needed."""
        self._uses.clear()
        self._buffers, self.held_bytes = None, 0
        if self.held:
            self.drops += 1
            self.held.clear()
            self.recorder.release()

    def _graph(self, slots: Slots, last: Sequence[int]) -> _Graph | None:
        """Return a graph that serves this step, recorded now if its shape is frequent."""
        rows, columns = len(last), slots.end + 1
        most_rows = min(slots.rows, self.most_rows)
        fits = [
            key for key in self.held
            if rows <= key[0] <= most_rows and columns <= key[1] and key[2] == slots.columns
        ]  # fmt: skip
        best = min(fits, key=lambda key: key[0] * key[1], default=None)
        own = min(rounded(rows, LEAST_ROWS), most_rows), min(rounded(columns, GRAIN), slots.columns), slots.columns
        if best and (best == own or best[0] * best[1] <= PADDING * rows * columns + SPARE_TOKENS):
            self.held[best] = self.held.pop(best)  # the last one is the last one used
            return self.held[best]
        self._uses[own] += 1
        if self._uses[own] > USES and self.held_bytes < MOST_BYTES:
            if len(self.held) >= MOST_GRAPHS:
                del self.held[next(iter(self.held))]
            del self._uses[own]
            self._record(slots, last, own)
            return self.held.get(own)
        larger = self.held[best] if best else None
        return larger if larger and len(larger.tried_at) >= TRIALS else None

    def _give(self, slots: Slots, last: Sequence[int], rows: int) -> None:
        """Copy a step's inputs to where graphs read them; rows that nobody needs see the column that they write."""
        import torch

        at, more = slots.at, rows - len(last)
        given = [[token, start, at] for token, start in zip(last, slots.starts, strict=True)]
        self._inputs_N3[:rows].copy_(torch.tensor(given + [[last[0], at, at]] * more))

    def _record(self, slots: Slots, last: Sequence[int], key: tuple[int, int, int]) -> None:
        import torch

        assert self._logits_NV is not None
        step = FixedStep(self.model, slots, key, self._inputs_N3, self._logits_NV)
        self._give(slots, last, key[0])
        before, began, fault = self.recorder.held_bytes(), self.recorder.now_s(), None
        try:
            self.held[key] = _Graph(step, self.recorder.record(step))
        except torch.OutOfMemoryError:
            fault = "memory ran out"
        except Exception as error:  # noqa: BLE001 whatever it is, plain steps work
            fault = f"{type(error).__name__}: {error}"
        ended = self.recorder.now_s()  # raises if the device itself has failed
        if fault:
            slots.blank(range(len(last), key[0]))
            self._give_up(fault)
            return
        self.recorded += 1
        self.record_s += ended - began
        self.held_bytes += max(0, self.recorder.held_bytes() - before)

    def _try(self, graph: _Graph, slots: Slots, rows: int, plain: Callable[[], "torch.Tensor"]) -> "torch.Tensor":
        """Compare a graph with its step and with the plain step, whose result counts."""
        import torch

        times_s = [self.recorder.now_s()]
        graph.replay()
        times_s.append(self.recorder.now_s())
        replayed_RV = graph.step.logits_RV.clone()
        graph.step()
        fixed_RV = graph.step.logits_RV.clone()
        times_s.append(self.recorder.now_s())
        plain_BV = plain()
        times_s.append(self.recorder.now_s())
        noise = NOISE[plain_BV.element_size() < 4]
        again = distances(replayed_RV[:rows], fixed_RV[:rows]).max().item()
        other = distances(fixed_RV[:rows], plain_BV).median().item()  # a few rows of a mixture may change experts
        if not (again <= noise[0] and other <= noise[1]):
            size = f"{graph.step.shape[0]} rows and {graph.step.shape[1]} columns"
            self._give_up(
                f"logits of a graph of {size} are {again:.2g} from those of its kernels and {other:.2g} from those of "
                f"a plain step; noise is at most {noise[0]:g} and {noise[1]:g}"
            )
            raise RunAgain(self.off)
        graph.tried_at.add(slots.at)
        if len(graph.tried_at) >= TRIALS and times_s[1] - times_s[0] > times_s[3] - times_s[2]:
            self.held[graph.step.shape] = None
        return torch.cat([plain_BV, replayed_RV[rows:]])

    def _give_up(self, reason: str) -> None:
        self.off, self._logits_NV = reason, None
        self.drop()
        self.recorder.release()
        logger.warning("decoding without CUDA graphs from now on, which is slower: %s", reason)


def distances(found_BV: "torch.Tensor", wanted_BV: "torch.Tensor") -> "torch.Tensor":
    """Return how far each row of logits is from what it should be, as a share of the logits' spread, float32 [B].

    Logits that are not finite must be so in both, else the distance is infinite.
    """
    finite_BV = wanted_BV.isfinite()
    same_B = (found_BV.isfinite() == finite_BV).all(-1)
    wanted_BV, found_BV = (logits.float().where(finite_BV, 0) for logits in (wanted_BV, found_BV))
    spread_B = (wanted_BV - wanted_BV.mean(-1, keepdim=True)).norm(dim=-1)
    apart_B = (found_BV - wanted_BV).norm(dim=-1) / spread_B.clamp(min=1e-20)
    return apart_B.where(same_B, float("inf"))


def cuda_graphs(model: CausalModel, most_rows: int, eager: bool) -> Graphs | None:
    """Return graphs for a model, or None if it cannot have any or `eager` says that it should not."""
    devices = {parameter.device for parameter in model.parameters()}
    one_gpu = len(devices) == 1 and next(iter(devices)).type == "cuda"
    able = one_gpu and model.config._attn_implementation == NAME and not looks_at_positions(model)
    return Graphs(model, CudaRecorder(), most_rows) if able and not eager else None
