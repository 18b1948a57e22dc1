"""How much memory a fine-tune takes on each GPU, before anything is started.

What DeepSpeed 0.19 and transformers' decoders hold, read off their source: bytes per parameter by ZeRO stage, tensors
that autograd keeps per token and layer, buffers of collectives. `make bench-train` compares it with measured
allocations. Whole bytes of tensors are counted, not what an allocator wastes nor what CUDA takes for itself: a plan
leaves a share of the GPU free for that.

A step has three moments that may be the highest: the loss, when all activations and the logits are there; the begin of
the backward pass, when a layer's gradients and the buckets of ZeRO 2 have taken the logits' place; and the update, with
whatever copies of the gradients it makes. `Memory.peak` is the highest.
"""

from dataclasses import dataclass
from typing import Literal

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine.losses import LOGITS_AT_ONCE
from humpback_ray.train.engine.zero import (
    BUCKET_ELEMENTS,
    LIVE_ELEMENTS,
    PERSISTENT_ELEMENTS,
    SUB_GROUP_ELEMENTS,
    stage_of,
)
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.sizes import Shape

FP32 = 4
MOMENTS = 2 * FP32
"""AdamW's two moments, in float32."""


@dataclass(frozen=True)
class Layout:
    """What decides the memory of one worker."""

    workers: int
    stage: Literal[0, 1, 2, 3]
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    micro_batch_tokens: int = 4096
    """Tokens of a forward pass, packed."""
    accumulates: bool = False
    """Whether a step has several micro-batches."""
    offload_optimizer: bool = False
    offload_parameters: bool = False
    checkpointing: bool = False
    """Whether only each layer's input is kept and the rest computed again in the backward pass."""
    gpu: bool = True

    @property
    def element(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.dtype == "bfloat16" else 4

    @staticmethod
    def of(placement: TrainPlacement, recipe: TrainRecipe, workers: int, accumulates: bool = True) -> "Layout":
        """Return the layout of a placement with that many workers."""
        stage = stage_of(placement, recipe)
        return Layout(
            workers=workers, stage=stage, dtype=recipe.dtype, micro_batch_tokens=placement.micro_batch_tokens,
            accumulates=accumulates, offload_optimizer=placement.offload_optimizer and stage >= 2,
            offload_parameters=placement.offload_parameters and stage == 3,
            checkpointing=placement.activation_checkpointing, gpu=placement.gpus_per_worker > 0,
        )  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one worker, by what they are for, and what it keeps on its host."""

    parameters: int
    """Weights that stay: whole ones up to ZeRO 2, this worker's part with ZeRO 3."""
    gradients: int
    """That are kept from one micro-batch to the next."""
    optimizer: int
    """Float32 master weights and two moments; without ZeRO the weights are their own master copy."""
    activations: int
    """Kept for the backward pass."""
    logits: int
    """And what the loss makes of them; gone when the first layer's backward pass begins."""
    working: int
    """What the backward pass takes in their place: a layer's gradients, the largest parameter's, ZeRO 2's buckets."""
    buffers: int
    """Of collectives, and with ZeRO 3 the weights that are whole at a time."""
    update: int
    """What the update takes where the backward pass had all but parameters and optimizer."""
    host: int
    """Offloaded state, in the memory of the worker's host."""

    @property
    def peak(self) -> int:
        """The most that is held at once on the device."""
        step = self.gradients + self.activations + self.buffers + max(self.logits, self.working)
        return self.parameters + self.optimizer + max(step, self.update)


def memory(shape: Shape, layout: Layout) -> Memory:
    """Return what one worker holds of a model."""
    owned = -(-shape.parameters // layout.workers)
    optimizer = MOMENTS * shape.parameters if layout.stage == 0 else (MOMENTS + FP32) * owned
    moved = optimizer if layout.offload_optimizer else 0
    parameters = layout.element * (shape.parameters if layout.stage < 3 else owned + _persistent(shape, layout))
    gone = layout.element * owned if layout.offload_parameters else 0
    gradients, kept_on_host = _gradients(shape, layout, owned)
    return Memory(
        parameters=parameters - gone,
        gradients=gradients,
        optimizer=optimizer - moved,
        activations=activations(shape, layout),
        logits=logits(shape, layout),
        working=_working(shape, layout),
        buffers=_buffers(shape, layout),
        update=_update(shape, layout, owned),
        host=moved + gone + kept_on_host,
    )


def _persistent(shape: Shape, layout: Layout) -> int:
    """Elements that ZeRO 3 keeps whole on every worker because they are few: the norms."""
    if layout.workers == 1:
        return 0
    norms = [shape.hidden] * (2 * shape.layers + 1) + [shape.head] * (2 * shape.layers if shape.qk_norm else 0)
    return sum(size for size in norms if size < PERSISTENT_ELEMENTS)


def _gradients(shape: Shape, layout: Layout, owned: int) -> tuple[int, int]:
    """Return the bytes of gradients on the device and on the host.

    Stages 0 and 1 keep whole gradients in float32, and stage 1 of a bfloat16 model those in bfloat16 as well
    (DeepSpeed's BF16_Optimizer). From stage 2 on each worker keeps its part in float32, the dtype of accumulation;
    in float32 stage 2 holds the part of a micro-batch beside that of the ones before from when the first bucket is
    full, and the activations of as many layers are gone.
    """
    if layout.stage <= 1:
        both = layout.stage == 1 and layout.dtype == "bfloat16"
        return (FP32 + layout.element if both else FP32) * shape.parameters, 0
    part = FP32 * owned
    if layout.stage == 2:
        if layout.offload_optimizer:
            return part, part
        twice = layout.dtype == "float32" and layout.accumulates
        gone = activations(shape, layout) * min(BUCKET_ELEMENTS / shape.parameters, 1)
        return part + (max(part - round(gone), 0) if twice else 0), 0
    return (0, 2 * part) if layout.offload_optimizer else (part, 0)


def _buckets(layout: Layout) -> int:
    """Bytes in which gradients are reduced; on a GPU stages 1 and 2 fill one while the other is on its way."""
    return layout.element * BUCKET_ELEMENTS * (2 if layout.gpu and layout.stage < 3 else 1)


def _buffers(shape: Shape, layout: Layout) -> int:
    """Buckets that stay from one micro-batch to the next; with ZeRO 3 whole weights, too.

    Those of layers in or near use, and once more those that came last, in the buffer in which they came.
    """
    if layout.stage == 3:
        gathers = layout.workers > 1 or layout.offload_parameters
        live = min(shape.parameters, LIVE_ELEMENTS) + min(shape.parameters, BUCKET_ELEMENTS) if gathers else 0
        return _buckets(layout) + layout.element * live
    return _buckets(layout) if layout.stage == 1 and layout.dtype == "float32" else 0


def _working(shape: Shape, layout: Layout) -> int:
    """What the backward pass makes beside what it keeps."""
    layer = layout.micro_batch_tokens * layout.element * (2 * shape.hidden + 3 * shape.ffn)
    if layout.checkpointing:
        layer += layout.micro_batch_tokens * layer_activations(shape, layout.element)
    return layer + layout.element * shape.largest + (_buckets(layout) if layout.stage == 2 else 0)


def _update(shape: Shape, layout: Layout, owned: int) -> int:
    """Gradients at the update, and copies that are made of them; fused AdamW needs nothing else."""
    if layout.offload_optimizer:
        return 0
    whole, part = FP32 * shape.parameters, FP32 * owned
    if layout.stage == 0:
        return whole + (FP32 * min(shape.parameters, ALL_REDUCE_ELEMENTS) if layout.workers > 1 else 0)
    if layout.stage == 3:
        return part + FP32 * min(owned, SUB_GROUP_ELEMENTS) + _buckets(layout)
    if layout.dtype == "bfloat16":
        return _gradients(shape, layout, owned)[0]
    return whole + _buckets(layout) + part if layout.stage == 1 else 2 * part


ALL_REDUCE_ELEMENTS = 500_000_000
"""Elements that DeepSpeed copies together to reduce them where ZeRO is off."""


def activations(shape: Shape, layout: Layout) -> int:
    """Return the bytes that autograd keeps of a micro-batch, logits left out; with checkpointing each layer's input."""
    kept = layout.element * shape.hidden if layout.checkpointing else layer_activations(shape, layout.element)
    end = norm_activations(shape.hidden, layout.element) + layout.element * shape.hidden
    return layout.micro_batch_tokens * (shape.layers * kept + end)


def layer_activations(shape: Shape, element: int) -> int:
    """Return the bytes that one layer keeps per token, with an attention that keeps no matrix of scores.

    Both norms, their outputs (inputs of the products); queries, keys, values, what attention gives (example by example,
    and together) and its log-sum-exp per head; of the feed-forward network gate, its activation, up and their product.
    """
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    attention = element * (3 * queries + 2 * keys) + FP32 * shape.heads
    if shape.qk_norm:
        attention += norm_activations(queries, element) + norm_activations(keys, element)
    norms = 2 * (norm_activations(shape.hidden, element) + element * shape.hidden)
    return norms + attention + 4 * element * shape.ffn


def norm_activations(width: int, element: int) -> int:
    """Return what transformers' RMS norm keeps per token: its input in float32, and the normalised values."""
    return FP32 * width + element * width


def logits(shape: Shape, layout: Layout) -> int:
    """Return the most bytes that logits and loss hold, as if every token carried loss.

    In float32 log-probabilities and two gradients, of as many as the loss takes at once; where that is not all, all of
    them and their gradient in the training dtype.
    """
    count = shape.vocabulary * layout.micro_batch_tokens
    return 3 * FP32 * min(count, LOGITS_AT_ONCE) + (2 * layout.element * count if count > LOGITS_AT_ONCE else 0)
