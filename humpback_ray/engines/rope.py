"""Positions of models with two sets of frequencies, such as Phi 3: one for sequences up to a length, one for longer.

transformers chooses a set by the largest position in a pass, so a row would depend on the rows beside it. Here each row
of a pass has its own: the set that it would have alone. A sequence that passes the length while it is written must be
read again, since its keys are those of the other set. So replies equal those of `generate` without a cache; with one,
transformers 5.19 forgets the sequence at that point. vLLM uses the second set for all rows if its limit is beyond the
length.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from humpback_ray.engines.types import CausalModel

if TYPE_CHECKING:
    import torch


def settings(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the rotary settings of a configuration's text part: one, or one for each kind of layer."""
    found: Any = getattr(config.get_text_config(), "rope_parameters", None) or {}
    yield from ([found] if "rope_type" in found else [one for one in found.values() if isinstance(one, dict)])


def turning_points(config: Any) -> set[int]:
    """Return the most tokens for the first set of frequencies, by kind of layer; none if there is one set."""
    return {one["original_max_position_embeddings"] for one in settings(config) if one["rope_type"] == "longrope"}


def turning_point(model: CausalModel) -> int | None:
    """Let each row of a pass choose its frequencies; return the most tokens for the first set, None without sets."""
    lengths: set[int] = set()
    modules: list[Any] = [*model.modules()]
    for module in modules:
        if "longrope" in _kinds(module):
            lengths |= turning_points(module.config)
            module.forward = _ByRow(module.forward, max(lengths))
    if len(lengths) > 1:
        raise ValueError(
            f"layers of {model.config.model_type} at {model.config.name_or_path} change their frequencies at different "
            f"lengths: {sorted(lengths)} tokens; use the vllm engine"
        )
    return next(iter(lengths), None)


def looks_at_positions(model: CausalModel) -> bool:
    """Tell whether a model reads positions on the host to choose frequencies."""
    return any("longrope" in kind or "dynamic" in kind for module in model.modules() for kind in _kinds(module))


def _kinds(module: Any) -> list[str]:
    """Return a module's kinds of frequencies, if it is about positions."""
    found = getattr(module, "rope_type", None)
    return [found] if isinstance(found, str) else list(found.values()) if isinstance(found, dict) else []


class _ByRow:
    """A rotary embedding that treats short and long rows of a pass apart."""

    def __init__(self, inner: Any, turn: int) -> None:
        self.inner, self.turn = inner, turn

    def __call__(
        self, x: "torch.Tensor", position_ids: "torch.Tensor", *kinds: Any, **named: Any
    ) -> "tuple[torch.Tensor, ...]":
        """Return cosines and sines, [B, T, width] each."""
        import torch

        long_B = position_ids.amax(-1) >= self.turn
        if bool(long_B.all()) or not bool(long_B.any()):
            return self.inner(x, position_ids, *kinds, **named)
        order_B = torch.cat([part.nonzero()[:, 0] for part in (~long_B, long_B)])
        parts = [self.inner(x, position_ids[part], *kinds, **named) for part in (~long_B, long_B)]
        return tuple(torch.cat(both)[order_B.argsort()] for both in zip(*parts, strict=True))
