"""What a scorer is, and how the samples of one rating become a row.

A scorer turns candidates into rows of SCORE. A sample is a number or a failure that says why; failures are counted and
never become a number. Where every sample of a rating failed, the row has no score and a `drop_reason`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from humpback_ray.engines.base import Completion, Engine
from humpback_ray.prompts.chat import ChatRecipe

UNPARSED, UNFINISHED, TOO_LONG = "unrated_unparsed", "unrated_unfinished", "prompt_too_long"
FAILURES = frozenset({UNPARSED, UNFINISHED, TOO_LONG})
"""Drop reasons that are failures of the rating, not verdicts; a recipe's `max_failed_share` bounds them."""


class Scorer(Protocol):
    """A member of the union in `scorers/__init__.py`."""

    async def score(self, rows: Sequence[Mapping[str, Any]], chat: ChatRecipe, engine: Engine) -> list[dict[str, Any]]:
        """Rate candidates (`id`, `instruction`, `response`); returns a row of SCORE for each, in their order."""
        ...


@dataclass(frozen=True)
class Sample:
    """One rating of one pair."""

    score: float | None
    completion: Completion

    @property
    def failure(self) -> str | None:
        """Why there is no score."""
        if self.score is not None:
            return None
        by_finish = {"context": TOO_LONG, "length": UNFINISHED}
        return by_finish.get(self.completion.finish_reason, UNPARSED)


def score_row(row_id: str, prompt: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Average the samples that have a score and write down all of them.

    Returns:
        A row of SCORE. `prompt_tokens` counts the prompt once, `completion_tokens` all replies. Without any score the
        `drop_reason` is the commonest failure (at a tie, the first).
    """
    scores = [sample.score for sample in samples if sample.score is not None]
    failures = [sample.failure for sample in samples if sample.failure]
    return {
        "id": row_id,
        "score": sum(scores) / len(scores) if scores else None,
        "samples": [sample.score for sample in samples],
        "replies": [sample.completion.text for sample in samples],
        "finish_reasons": [sample.completion.finish_reason for sample in samples],
        "prompt_hash": hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(),
        "prompt_tokens": samples[0].completion.prompt_tokens,
        "completion_tokens": sum(sample.completion.completion_tokens for sample in samples),
        "drop_reason": None if scores else max(failures, key=failures.count),
    }
