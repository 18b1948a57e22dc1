"""Models whose rotary frequencies depend on the longest text of a forward pass, so on what is computed together.

`longrope` (Ding et al. 2024, arXiv:2402.13753) has two sets of frequencies: transformers takes the short one if no
position of the pass reaches the original context, else the long one for all its rows. Examples on either side of that
length therefore never share a micro-batch.

`dynamic` (NTK scaling): beyond the original context every length has its own frequencies, and transformers keeps those
of the longest text so far. A loss would depend on earlier steps, so such a training is refused if an example is that
long.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from humpback_ray.engines.rope import settings, turning_points

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def boundary(config: "PreTrainedConfig") -> int | None:
    """Return the most tokens of a text that is read with the short set of frequencies; None if there is one set."""
    return min(turning_points(config), default=None)


def problem(config: "PreTrainedConfig", longest: Callable[[], int]) -> str | None:
    """Say why a model cannot be trained on its examples, although its context may be longer than they are; else None.

    Args:
        config: configuration of the model.
        longest: returns the tokens of the longest example; only called if they matter.
    """
    text: Any = config.get_text_config()
    for one in settings(config):
        kind, by_layer = one["rope_type"], one is not getattr(text, "rope_parameters", None)
        if "dynamic" in kind:
            limit, why = text.max_position_embeddings, "its frequencies depend on the longest text read so far"
        elif kind == "longrope" and by_layer:
            limit, why = one["original_max_position_embeddings"], "transformers cannot read longer texts twice"
        else:
            continue
        if (tokens := longest()) > limit:
            return (
                f"the base model's rope_type is {kind}: beyond {limit:,} tokens {why}, and the longest example has "
                f"{tokens:,}; set train.recipe.max_length_tokens to {limit} or less"
            )
    return None
