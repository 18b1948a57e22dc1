"""An estimate of the memory that a fine-tune takes on each GPU, before anything is started.

It follows the source of DeepSpeed 0.19 and of transformers' decoders: bytes per parameter by ZeRO stage, tensors that
autograd keeps per token and layer, buffers of collectives. `make bench-train` compares it with measured allocations. It
counts the bytes of tensors, not what the allocator wastes or what CUDA takes for itself: a plan leaves a share of the
GPU free for that.

Memory can peak at three moments of a step: at the loss, when all activations and the logits are there; at the start of
the backward pass, when a layer's gradients and the buckets of ZeRO 2 have replaced the logits; and at the update, with
its copies of the gradients. `Memory.peak` is the highest of the three.
"""

from dataclasses import dataclass
from typing import Literal

from humpback_ray.placement import TrainPlacement
from humpback_ray.stages.warm import ROUNDED_BYTES
from humpback_ray.train.checkpoint.store import PART_BYTES
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
    """The settings that determine the memory of one worker."""

    workers: int
    stage: Literal[0, 1, 2, 3]
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    micro_batch_tokens: int = 4096
    """Tokens in a forward pass, packed."""
    accumulates: bool = False
    """Whether a step has several micro-batches."""
    offload_optimizer: bool = False
    offload_parameters: bool = False
    checkpointing: bool = False
    """Whether only each layer's input is kept, and the backward pass computes the rest again."""
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
    """Bytes on one worker's device by purpose, and bytes on its host."""

    parameters: int
    """Permanent weights: whole ones up to ZeRO 2, this worker's part with ZeRO 3."""
    gradients: int
    """Gradients kept from one micro-batch to the next."""
    optimizer: int
    """Float32 master weights and two moments; without ZeRO the weights are their own master copy."""
    activations: int
    """Activations kept for the backward pass."""
    logits: int
    """Logits and the loss's copies of them, freed when the first layer's backward pass begins."""
    working: int
    """What the backward pass takes instead: gradients of a layer and of the largest parameter, ZeRO 2's buckets."""
    buffers: int
    """Buffers of collectives, and with ZeRO 3 the weights that are whole at a time."""
    update: int
    """Memory of the update, when all else but parameters and optimizer is free."""
    host: int
    """Offloaded state in the memory of the worker's host, with what pinning rounds up."""
    checkpoint: int
    """A checkpoint's copy in the memory of the worker's host, and the file that is being written from it."""

    @property
    def peak(self) -> int:
        """Most bytes held at once on the device."""
        step = self.gradients + self.activations + self.buffers + max(self.logits, self.working)
        return self.parameters + self.optimizer + max(step, self.update)


def memory(shape: Shape, layout: Layout) -> Memory:
    """Return the memory that one worker needs for a model."""
    owned = -(-shape.parameters // layout.workers)
    optimizer = MOMENTS * shape.parameters if layout.stage == 0 else (MOMENTS + FP32) * owned
    parameters = layout.element * (shape.parameters if layout.stage < 3 else owned + _persistent(shape, layout))
    copy = (MOMENTS + FP32) * owned
    return Memory(
        parameters=parameters - (layout.element * owned if layout.offload_parameters else 0),
        gradients=_gradients(shape, layout, owned),
        optimizer=0 if layout.offload_optimizer else optimizer,
        activations=activations(shape, layout),
        logits=logits(shape, layout),
        working=_working(shape, layout),
        buffers=_buffers(shape, layout),
        update=_update(shape, layout, owned),
        host=_host(shape, layout, owned),
        checkpoint=copy + min(copy, PART_BYTES),
    )


def _host(shape: Shape, layout: Layout, owned: int) -> int:
    """Return the bytes of offloaded state on the host.

    On a GPU, PyTorch pins the buffers that the GPU copies to or from; a freed one stays with its allocator. With ZeRO 2
    these are this worker's part of master weights, of gradients (both float32) and of weights, and room for the largest
    gradient; with ZeRO 3 two float32 buffers of gradients, and, if parameters are offloaded, the weights twice: one
    buffer per parameter while the model is loaded, then one for all. The moments, and with ZeRO 3 the master weights,
    are not pinned.
    """
    if not layout.offload_optimizer:
        return 0
    pinned = [FP32 * owned, FP32 * owned]
    if layout.stage == 2:
        pinned += [layout.element * owned, layout.element * shape.largest]
        return MOMENTS * owned + sum(_pinned(size, layout) for size in pinned)
    if layout.offload_parameters:
        matrices = [*shape.layer_matrices.values()] * shape.layers + [shape.embedding] * (1 if shape.tied else 2)
        parts = [layout.element * -(-count // layout.workers) for count in matrices]
        pinned += [layout.element * owned, *(parts if layout.gpu else [])]
    return (FP32 + MOMENTS) * owned + sum(_pinned(size, layout) for size in pinned)


def _pinned(size: int, layout: Layout) -> int:
    """Return the bytes that a buffer takes: a small one that is pinned is rounded up to a power of two."""
    return 1 << (size - 1).bit_length() if layout.gpu and size <= ROUNDED_BYTES else size


def _persistent(shape: Shape, layout: Layout) -> int:
    """Return the number of elements that ZeRO 3 keeps whole on every worker because they are few: the norms."""
    if layout.workers == 1:
        return 0
    norms = [shape.hidden] * (2 * shape.layers + 1) + [shape.head] * (2 * shape.layers if shape.qk_norm else 0)
    return sum(size for size in norms if size < PERSISTENT_ELEMENTS)


def _gradients(shape: Shape, layout: Layout, owned: int) -> int:
    """Return the bytes of gradients on the device.

    Stages 0 and 1 keep whole gradients in float32; for a bfloat16 model, stage 1 keeps them in bfloat16 as well
    (DeepSpeed's BF16_Optimizer). From stage 2 on, each worker keeps its part in float32, the dtype of accumulation. In
    float32, once its first bucket is full, stage 2 also holds the part of the current micro-batch beside that of the
    earlier ones; by then the activations of the layers in that bucket are free.
    """
    if layout.stage <= 1:
        both = layout.stage == 1 and layout.dtype == "bfloat16"
        return (FP32 + layout.element if both else FP32) * shape.parameters
    part = FP32 * owned
    if layout.stage == 2:
        if layout.offload_optimizer:
            return part
        twice = layout.dtype == "float32" and layout.accumulates
        gone = activations(shape, layout) * min(BUCKET_ELEMENTS / shape.parameters, 1)
        return part + (max(part - round(gone), 0) if twice else 0)
    return 0 if layout.offload_optimizer else part


def _buckets(layout: Layout) -> int:
    """Return the bytes of buckets that reduce gradients; on a GPU, stages 1 and 2 fill one while they send another."""
    return layout.element * BUCKET_ELEMENTS * (2 if layout.gpu and layout.stage < 3 else 1)


def _buffers(shape: Shape, layout: Layout) -> int:
    """Return the bytes of buckets that stay from one micro-batch to the next; with ZeRO 3 also of whole weights.

    These are the weights of layers in or near use, and a second copy of the last ones in the buffer that received them.
    """
    if layout.stage == 3:
        gathers = layout.workers > 1 or layout.offload_parameters
        live = min(shape.parameters, LIVE_ELEMENTS) + min(shape.parameters, BUCKET_ELEMENTS) if gathers else 0
        return _buckets(layout) + layout.element * live
    return _buckets(layout) if layout.stage == 1 and layout.dtype == "float32" else 0


def _working(shape: Shape, layout: Layout) -> int:
    """Return the bytes of temporary tensors in the backward pass."""
    layer = layout.micro_batch_tokens * layout.element * (2 * shape.hidden + 3 * shape.ffn)
    if layout.checkpointing:
        layer += layout.micro_batch_tokens * layer_activations(shape, layout.element)
    return layer + layout.element * shape.largest + (_buckets(layout) if layout.stage == 2 else 0)


def _update(shape: Shape, layout: Layout, owned: int) -> int:
    """Return the bytes of gradients at the update and of their copies; fused AdamW needs nothing else."""
    if layout.offload_optimizer:
        return 0
    whole, part = FP32 * shape.parameters, FP32 * owned
    if layout.stage == 0:
        return whole + (FP32 * min(shape.parameters, ALL_REDUCE_ELEMENTS) if layout.workers > 1 else 0)
    if layout.stage == 3:
        return part + FP32 * min(owned, SUB_GROUP_ELEMENTS) + _buckets(layout)
    if layout.dtype == "bfloat16":
        return _gradients(shape, layout, owned)
    return whole + _buckets(layout) + part if layout.stage == 1 else 2 * part


ALL_REDUCE_ELEMENTS = 500_000_000
"""Elements that DeepSpeed copies together to reduce them when ZeRO is off."""


def activations(shape: Shape, layout: Layout) -> int:
    """Return the bytes that autograd keeps of a micro-batch without logits; with checkpointing, the layers' inputs."""
    kept = layout.element * shape.hidden if layout.checkpointing else layer_activations(shape, layout.element)
    end = norm_activations(shape.hidden, layout.element) + layout.element * shape.hidden
    return layout.micro_batch_tokens * (shape.layers * kept + end)


def layer_activations(shape: Shape, element: int) -> int:
    """Return the bytes that one layer keeps per token, with an attention that keeps no matrix of scores.

    These are both norms and their outputs (inputs of the products); queries, keys, values, the output of attention
    (example by example, and concatenated) and its log-sum-exp per head; and in the feed-forward network the gate, its
    activation, up and their product.
    """
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    attention = element * (3 * queries + 2 * keys) + FP32 * shape.heads
    if shape.qk_norm:
        attention += norm_activations(queries, element) + norm_activations(keys, element)
    norms = 2 * (norm_activations(shape.hidden, element) + element * shape.hidden)
    return norms + attention + 4 * element * shape.ffn


def norm_activations(width: int, element: int) -> int:
    """Return the bytes that transformers' RMS norm keeps per token: its input in float32 and the normalized values."""
    return FP32 * width + element * width


def logits(shape: Shape, layout: Layout) -> int:
    """Return the most bytes that logits and loss take, as if every token carried loss.

    These are the logits, whose place their gradient takes, and two float32 copies of as many as the loss takes at once.
    """
    count = shape.vocabulary * layout.micro_batch_tokens
    return layout.element * count + 2 * FP32 * min(count, LOGITS_AT_ONCE)
