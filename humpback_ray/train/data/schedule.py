"""Steps, learning rates and batches of a training: pure functions of a recipe and the number of examples.

The examples of step s depend only on (seed, s): the stream of examples is one shuffled pass after another, and step s
takes the next `batch_examples`, from two passes if needed. Workers only divide a step's examples, so their number
changes neither batches nor losses.
"""

import functools
import itertools
import math
import random
from dataclasses import dataclass

from humpback_ray.records import seed_of
from humpback_ray.train.recipe import TrainRecipe

SMALL_EXAMPLES = 3000
"""With fewer examples than this, the batch is small (Li et al. 2023, section 3.1)."""

STEPS_BY_EXAMPLES = (
    (100, 30), (800, 300), (1_600, 600), (3_200, 500), (6_400, 600), (12_800, 600), (25_600, 1_200), (51_200, 1_600),
)  # fmt: skip
"""(examples, steps) of the paper's data-scaling runs; batches are 8 up to 1,600 examples and 32 above."""


def batch_examples(examples: int) -> int:
    """Return the paper's batch size: 32 examples, or 8 if there are fewer than 3,000."""
    return 8 if examples < SMALL_EXAMPLES else 32


def steps(examples: int) -> int:
    """Return the paper's number of steps, interpolated in log N between the points of its table.

    Outside the table (our choice): below 100 examples its first value, 30; above 51,200 the last slope continues, 400
    steps per doubling, so training does not stop growing where the table ends.
    """
    if examples <= STEPS_BY_EXAMPLES[0][0]:
        return STEPS_BY_EXAMPLES[0][1]
    low, high = STEPS_BY_EXAMPLES[-2:]
    for left, right in itertools.pairwise(STEPS_BY_EXAMPLES):
        if examples <= right[0]:
            low, high = left, right
            break
    share = math.log(examples / low[0]) / math.log(high[0] / low[0])
    return round(low[1] + share * (high[1] - low[1]))


@dataclass(frozen=True)
class Schedule:
    """Settings of one model's training, known before it starts."""

    examples: int
    batch_examples: int
    steps: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    seed: int

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, 1 to `steps`; the last step has exactly the final rate."""
        if step >= self.steps:
            return self.final_learning_rate
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        share = (step - 1 - self.warmup_steps) / max(self.steps - 1 - self.warmup_steps, 1)
        return self.learning_rate + share * (self.final_learning_rate - self.learning_rate)

    def batch(self, step: int) -> list[int]:
        """Return the indices of a step's examples, 1 to `steps`; they depend only on (seed, step)."""
        first = (step - 1) * self.batch_examples
        places = (divmod(place, self.examples) for place in range(first, first + self.batch_examples))
        return [_order(self.examples, self.seed, epoch)[index] for epoch, index in places]


def schedule(recipe: TrainRecipe, model: str, examples: int) -> Schedule:
    """Return a model's schedule for its recipe and its number of examples.

    Raises:
        ValueError: there are no examples.
    """
    if examples < 1:
        raise ValueError(f"{model} has no examples to train on")
    first, last = recipe.rates(model)
    batch = recipe.batch_examples or batch_examples(examples)
    count = recipe.steps.get(model) or steps(examples)
    return Schedule(examples, batch, count, first, last, recipe.warmup_steps, recipe.seed)


@functools.lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> list[int]:
    order = list(range(examples))
    random.Random(seed_of("order", seed, epoch)).shuffle(order)
    return order
