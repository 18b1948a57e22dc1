"""Choosing the next token, row by row: what transformers' `generate` calls at every step of a batch.

Each row of a batch has its own temperature, nucleus, limit and seed, and draws from its own generator: what it samples
depends on its own probabilities alone, so batch-mates change it by no more than floating-point noise.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from humpback_ray.engines.base import Request


class RowSampler:
    """A logits processor that leaves one token possible in every sampled row; greedy rows (temperature 0) pass as is.

    Source of the nucleus rule: Holtzman et al. 2020 (arXiv:1904.09751), the smallest set whose mass reaches top_p.
    """

    def __init__(self, requests: Sequence[Request], device: Any) -> None:
        import torch

        self.rows = [index for index, request in enumerate(requests) if request.temperature > 0]
        self.draws = [Random(requests[index].seed) for index in self.rows]
        sampled = [requests[index] for index in self.rows]
        self.temperature_R1 = torch.tensor([[request.temperature] for request in sampled], device=device)
        self.top_p_R1 = torch.tensor([[request.top_p] for request in sampled], device=device)

    def __call__(self, input_ids: Any, scores_BV: Any) -> Any:
        """Return the scores with all but the drawn token of each sampled row at minus infinity."""
        import torch

        if not self.rows:
            return scores_BV
        probabilities_RV, order_RV = torch.softmax(scores_BV[self.rows].float() / self.temperature_R1, -1).sort(
            dim=-1, descending=True
        )
        before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
        kept_RV = probabilities_RV.where(before_RV < self.top_p_R1, 0.0)
        kept_RV[:, 0] = probabilities_RV[:, 0]
        mass_RV = kept_RV.cumsum(-1)
        uniform_R1 = torch.tensor([[draw.random()] for draw in self.draws], device=mass_RV.device)
        drawn_R1 = torch.searchsorted(mass_RV, uniform_R1 * mass_RV[:, -1:], right=True)
        last_R1 = (kept_RV > 0).sum(-1, keepdim=True) - 1  # rounding can land the draw one past the end
        token_R1 = order_RV.gather(-1, drawn_R1.minimum(last_R1))
        chosen_BV = scores_BV.clone()
        chosen_BV[self.rows] = torch.full_like(scores_BV[self.rows], -torch.inf).scatter(-1, token_R1, 0.0)
        return chosen_BV


class RowLimits:
    """A stopping criterion that ends every row at its own number of new tokens."""

    def __init__(self, requests: Sequence[Request], prompt_width: int, device: Any) -> None:
        import torch

        self.widths_B = torch.tensor([prompt_width + request.max_new_tokens for request in requests], device=device)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Return, per row, whether it is at its limit."""
        return input_ids.shape[1] >= self.widths_B
