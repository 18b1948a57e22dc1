"""How much memory a fine-tune takes on each GPU, before anything is started.

What DeepSpeed 0.19 and transformers' decoders hold, read off their source: bytes per parameter by ZeRO stage, tensors
that autograd keeps per token and layer, buffers of collectives. `make bench-train` holds it against measured
allocations. Whole bytes of tensors are counted, not what an allocator wastes nor what CUDA takes for itself: a plan
leaves a share of the GPU free for that.

A step has two moments that may be the highest: the backward pass, with activations and logits, and the update, with
whatever copies of the gradients it makes. `Memory.peak` is the higher one.
"""

from dataclasses import dataclass
from typing import Literal

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.sizes import Shape
from humpback_ray.train.zero import BUCKET_ELEMENTS, LIVE_ELEMENTS, PERSISTENT_ELEMENTS, SUB_GROUP_ELEMENTS, stage_of

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
        """Return the layout of a placement with so many workers."""
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
    """At the end of a backward pass, the one being made included."""
    optimizer: int
    """Float32 master weights and two moments."""
    activations: int
    """Kept for the backward pass, and what one layer's backward pass needs at once."""
    logits: int
    buffers: int
    """Of collectives, and with ZeRO 3 the weights that are whole at a time."""
    update: int
    """What the update takes where the backward pass had gradients, activations, logits and buffers."""
    host: int
    """Offloaded state, in the memory of the worker's host."""

    @property
    def peak(self) -> int:
        """The most that is held at once on the device."""
        step = self.gradients + self.activations + self.logits + self.buffers
        return self.parameters + self.optimizer + max(step, self.update)


def memory(shape: Shape, layout: Layout, logits_tokens: int | None = None) -> Memory:
    """Return what one worker holds.

    Args:
        shape: the model.
        layout: how it is spread.
        logits_tokens: positions of a micro-batch whose logits are made; None: all.
    """
    owned = -(-shape.parameters // layout.workers)
    optimizer = _optimizer(shape, layout, owned)
    moved = optimizer if layout.offload_optimizer else 0
    parameters = layout.element * (shape.parameters if layout.stage < 3 else owned + _persistent(shape, layout))
    gone = layout.element * owned if layout.offload_parameters else 0
    gradients, kept_on_host = _gradients(shape, layout, owned)
    return Memory(
        parameters=parameters - gone,
        gradients=gradients,
        optimizer=optimizer - moved,
        activations=activations(shape, layout),
        logits=logits(shape, layout, logits_tokens),
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


def _optimizer(shape: Shape, layout: Layout, owned: int) -> int:
    """Master weights and moments.

    Without ZeRO, and with ZeRO 3 in float32 on the same device, the weights are their own master copy.
    """
    if layout.stage == 0:
        return MOMENTS * shape.parameters
    shared = layout.stage == 3 and layout.dtype == "float32" and not layout.offload_optimizer
    return (MOMENTS if shared else MOMENTS + FP32) * owned


def _gradients(shape: Shape, layout: Layout, owned: int) -> tuple[int, int]:
    """Return the bytes of gradients on the device and on the host.

    Stages 0 and 1 keep whole gradients, in float32; from stage 2 on each worker keeps its part (float32, the dtype of
    accumulation), and the gradient of one parameter is whole in the training dtype until it is reduced.
    """
    one = layout.element * shape.largest
    if layout.stage <= 1:
        return FP32 * shape.parameters + (one if layout.dtype == "bfloat16" else 0), 0
    part = FP32 * owned
    if layout.stage == 2:
        twice = layout.dtype == "float32" and layout.accumulates
        if layout.offload_optimizer:
            return part + one, FP32 * owned
        return part * (2 if twice else 1) + one, 0
    return (one, 2 * part) if layout.offload_optimizer else (part + one, 0)


def _buffers(shape: Shape, layout: Layout) -> int:
    """Buckets in which gradients are reduced; with ZeRO 3 whole weights, too, of layers in use or soon to be used."""
    if layout.stage == 0:
        return 0
    element = FP32 if layout.stage == 1 else layout.element
    buckets = 2 if layout.gpu and layout.stage < 3 else 1
    total = buckets * element * BUCKET_ELEMENTS
    if layout.stage == 3 and (layout.workers > 1 or layout.offload_parameters):
        total += layout.element * min(shape.parameters, LIVE_ELEMENTS + BUCKET_ELEMENTS)
    return total


def _update(shape: Shape, layout: Layout, owned: int) -> int:
    """Gradients at the update; fused AdamW needs nothing else."""
    if layout.stage == 0:
        return FP32 * shape.parameters
    if layout.offload_optimizer:
        return 0
    if layout.stage == 3:
        return FP32 * (owned + min(owned, SUB_GROUP_ELEMENTS))
    return (1 if layout.dtype == "bfloat16" else 2) * FP32 * owned


def activations(shape: Shape, layout: Layout) -> int:
    """Return the bytes that autograd keeps of a micro-batch, logits left out.

    With checkpointing each layer's input, and everything of the one layer that is computed again.
    """
    layer, token = layer_activations(shape, layout.element), layout.micro_batch_tokens
    ends = norm_activations(shape.hidden, layout.element) + layout.element * shape.hidden
    working = layout.element * (2 * shape.hidden + 3 * shape.ffn)
    if layout.checkpointing:
        return token * (shape.layers * layout.element * shape.hidden + layer + ends + working)
    return token * (shape.layers * layer + ends + working)


def layer_activations(shape: Shape, element: int) -> int:
    """Return the bytes that one layer keeps per token, with an attention that keeps no matrix of scores.

    Both norms, their outputs (inputs of the products); queries, keys, values, what attention gives and its
    log-sum-exp per head; of the feed-forward network gate, its activation, up and their product.
    """
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    attention = element * (2 * queries + 2 * keys) + FP32 * shape.heads
    if shape.qk_norm:
        attention += norm_activations(queries, element) + norm_activations(keys, element)
    norms = 2 * (norm_activations(shape.hidden, element) + element * shape.hidden)
    return norms + attention + 4 * element * shape.ffn


def norm_activations(width: int, element: int) -> int:
    """Return what transformers' RMS norm keeps per token: its input in float32, and the normalised values."""
    return FP32 * width + element * width


LOGITS_AT_ONCE = 1 << 26
"""Logits of which the loop takes the loss at once, in float32; of more, some rows at a time."""


def logits(shape: Shape, layout: Layout, tokens: int | None = None) -> int:
    """Return the most bytes that logits and loss hold.

    In float32 log-probabilities and two gradients of as many as the loss takes at once; in the training dtype all of
    them, and where they are taken in parts their gradient, too.
    """
    count = shape.vocabulary * (layout.micro_batch_tokens if tokens is None else tokens)
    whole = layout.element * count * (2 if count > LOGITS_AT_ONCE else 1 if layout.dtype == "bfloat16" else 0)
    return 3 * FP32 * min(count, LOGITS_AT_ONCE) + whole
