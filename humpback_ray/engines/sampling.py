"""Choosing the next token of every sequence in progress: greedily, or from a nucleus with its own random numbers.

A sampled token depends only on the sequence's own probabilities and its own seed. Other sequences of the batch change
it by no more than floating-point noise.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from humpback_ray.engines.base import Request
from humpback_ray.engines.tokens import NOT_FINITE

if TYPE_CHECKING:
    import torch

NUCLEUS_TOKENS = 256
"""Number of likeliest tokens that are sorted first; for a larger nucleus the whole vocabulary is sorted."""


class Dice:
    """Temperature, nucleus and random numbers of one request."""

    def __init__(self, request: Request) -> None:
        self.temperature, self.top_p = request.temperature, request.top_p
        self.random = Random(request.seed)


def next_tokens(scores_BV: "torch.Tensor", dice: Sequence[Dice]) -> list[int]:
    """Choose a token for each row: the likeliest at temperature 0, else one drawn from the nucleus.

    A row whose largest score is NaN or infinite gets `NOT_FINITE`. Rows beyond those that have dice get the likeliest.
    The device is waited for once, or twice if a nucleus is wide.

    Source of the nucleus rule: Holtzman et al. 2020 (arXiv:1904.09751), the smallest set whose mass reaches top_p.
    """
    import torch

    best_B, tokens_B = scores_BV.max(-1)  # NaN counts as larger than any number
    finite_B = best_B.isfinite()
    tokens_B = tokens_B.where(finite_B, NOT_FINITE)
    drawing = [row for row, die in enumerate(dice) if die.temperature > 0]
    if not drawing:
        return tokens_B.tolist()
    asked = [(dice[row].temperature, dice[row].top_p, dice[row].random.random()) for row in drawing]
    first = drawing == list(range(len(drawing)))
    rows_R = slice(len(drawing)) if first else _sent(torch.tensor(drawing), scores_BV.device)
    scores_RV, finite_R = scores_BV[rows_R].float(), finite_B[rows_R]
    asked_R3 = _sent(torch.tensor(asked), scores_BV.device)
    probabilities_RV = torch.softmax(scores_RV.where(finite_R[:, None], 0.0) / asked_R3[:, :1], -1)
    sorted_RK, order_RK = probabilities_RV.topk(min(NUCLEUS_TOKENS, probabilities_RV.shape[-1]))
    drawn_R = _draw(sorted_RK, order_RK, asked_R3).where(finite_R, NOT_FINITE)
    wider_R = (sorted_RK.sum(-1) < asked_R3[:, 1]) & finite_R  # by row, so no row depends on the others
    counts = [len(tokens_B), len(drawing), len(drawing)]
    found = torch.cat([tokens_B, drawn_R, wider_R]).cpu().split(counts)
    tokens, drawn, wider = (part.tolist() for part in found)
    if wide := [place for place, is_wider in enumerate(wider) if is_wider]:
        wide_W = torch.tensor(wide, device=scores_BV.device)
        sorted_WV, order_WV = probabilities_RV[wide_W].sort(dim=-1, descending=True)
        for place, token in zip(wide, _draw(sorted_WV, order_WV, asked_R3[wide_W]).tolist(), strict=True):
            drawn[place] = token
    for row, token in zip(drawing, drawn, strict=True):
        tokens[row] = token
    return tokens


def _sent(values: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Send values to a device without waiting for the work that it still has."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _draw(sorted_RK: "torch.Tensor", order_RK: "torch.Tensor", asked_R3: "torch.Tensor") -> "torch.Tensor":
    """Return, for each row, the token at which the cumulative mass of the nucleus passes a share of its total.

    `asked_R3` holds each row's temperature, top_p and share.
    """
    top_p_R1, uniform_R1 = asked_R3[:, 1:2], asked_R3[:, 2:]
    before_RK = sorted_RK.cumsum(-1) - sorted_RK
    kept_RK = sorted_RK.where(before_RK < top_p_R1, 0.0)
    kept_RK[:, 0] = sorted_RK[:, 0]
    mass_RK = kept_RK.cumsum(-1)
    drawn_R1 = (mass_RK <= uniform_R1 * mass_RK[:, -1:]).sum(-1, keepdim=True)
    last_R1 = (kept_RK > 0).sum(-1, keepdim=True) - 1  # rounding can land the draw one past the end
    return order_RK.gather(-1, drawn_R1.minimum(last_R1))[:, 0]
