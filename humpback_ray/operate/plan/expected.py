"""The expected size of a run: the rows of each stage and the model's work per row.

Counts follow from stage to stage, from the assumptions of the configuration's `plan` section.
"""

from math import ceil, sqrt
from typing import Any

from humpback_ray.curate.scorers import Additive, Chained, Likelihood, Rubric
from humpback_ray.graph import Node
from humpback_ray.operate.plan.inference import RowWork
from humpback_ray.operate.plan.training import Batch
from humpback_ray.runconfig import RunConfig
from humpback_ray.train.data.schedule import schedule


class Expected:
    """A run's counts.

    Args:
        config: of the run.
        segments: number that its corpus keeps.
    """

    def __init__(self, config: RunConfig, segments: int) -> None:
        self.config, self.rates, self.segments = config, config.plan, segments
        self.rated = round(segments * self.rates.usable_candidates)
        self.response = self.rates.response_chars / self.rates.chars_per_token
        self.instruction = self.rates.instruction_chars / self.rates.chars_per_token

    def kept(self, number: int) -> int:
        """Return how many pairs a round keeps."""
        rule = self.config.curate.recipe.rounds[number - 1]
        most = [count for count in (rule.top_k, rule.sample) if count is not None]
        if rule.share is not None:
            most.append(ceil(rule.share * self.rated))
        elif rule.threshold is not None:
            most.append(round(self.rated * self.rates.kept_share(number)))
        return min([self.rated, *most])

    def batch(self, model: str) -> tuple[int, Batch]:
        """Return the number of a model's examples, and the batch of a step."""
        parts = [(self.rates.seed_pairs, self.rates.seed_chars)]
        if number := _round_of(model):
            parts = parts if self.config.train.recipe.joint else []
            parts.append((self.kept(number), self.rates.kept_chars))
        examples = max(sum(count for count, _ in parts), 1)
        mean = sum(count * mean for count, (mean, _) in parts) / examples
        square = sum(count * (deviation**2 + (own - mean) ** 2) for count, (own, deviation) in parts) / examples
        recipe, token = self.config.train.recipe, self.rates.chars_per_token
        laid_out = schedule(recipe, model, examples)
        length = max(mean / token, 2.0)
        return examples, Batch(laid_out.batch_examples, length, sqrt(square) / token, recipe.max_length_tokens)

    def work(self, node: Node) -> tuple[int, RowWork] | None:
        """Return the rows of a stage that uses a pool of engines, and the work per row; None for other stages."""
        rates, config = self.rates, self.config
        scorer = config.curate.recipe.scorer
        match node.kind.name:
            case "candidates":
                most = config.augment.recipe.max_new_tokens
                return self.segments, RowWork(self.response, self.instruction, most_reply_tokens=most)
            case "prescores" | "round-{t}/prescores" if isinstance(scorer, Chained):
                return self.rated, self.rating(scorer.first)
            case "round-{t}/scores" if isinstance(scorer, Chained):
                return round(scorer.share * self.rated), self.rating(scorer.then)
            case "round-{t}/scores":
                return self.rated, self.rating(scorer)
            case "round-{t}/rewritten":
                recipe = config.rewrite.recipe
                template = len(recipe.prompt) / rates.chars_per_token
                return self.kept(node.round or 0), RowWork(
                    template + self.instruction + self.response, self.response,
                    shared_tokens=_lead(recipe.prompt) * template, most_reply_tokens=recipe.max_new_tokens,
                )  # fmt: skip
            case "evaluation/m{t}":
                most = config.evaluate.recipe.max_new_tokens
                return rates.prompts, RowWork(self.instruction, rates.answer_tokens, most_reply_tokens=most)
        return None

    def rating(self, scorer: Any) -> RowWork:
        """Return a scorer's work per pair; `rubric_expected` reads all grades in one pass.

        A likelihood takes two passes, with and without the instruction; vLLM cannot use its cache for them.
        """
        pair = self.instruction + self.response
        if isinstance(scorer, Likelihood):
            return RowWork(pair + self.response)
        template = self.rates.rating_prompt_tokens
        shared = _lead(scorer.prompt) * template
        if not isinstance(scorer, Rubric | Additive):
            return RowWork(template + pair, shared_tokens=shared)
        reply = min(self.rates.rating_reply_tokens, scorer.max_new_tokens)
        return RowWork(template + pair, reply, scorer.samples, shared, scorer.max_new_tokens, scorer.read == "expected")


def _lead(template: str) -> float:
    """Return the share of a template's text that precedes everything that differs from pair to pair."""
    places = [template.find(mark) for mark in ("{instruction}", "{response}", "{code}")]
    return min(place for place in places if place >= 0) / len(template)


def _round_of(model: str) -> int:
    """Return the round whose pairs a model learns from; 0 for the seed alone."""
    return int(model.removeprefix("m")) if model.removeprefix("m").isdigit() else 0
