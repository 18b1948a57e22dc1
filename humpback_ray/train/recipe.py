"""What a fine-tune means: the constants of the paper, and our choices where it reports none.

From the paper (Li et al. 2023, arXiv:2308.06259, section 3.1 and the data-scaling tables): learning rates, weight
decay, dropout, batch sizes, the number of steps by the number of examples, loss on output tokens only.

Chosen by us, because it is silent: sequence length, betas and epsilon, gradient clipping, warm-up, number format, which
parameters decay (all), where dropout acts (wherever the model's own configuration has one; for the Llama family that is
attention alone), and the backward model's settings (the same as the others').
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from humpback_ray.config import Config
from humpback_ray.packages import ACCELERATE, DEEPSPEED, PEFT, TORCH, TRANSFORMERS, Package

TooLong = Literal["drop", "truncate"]
"""What happens to examples that are longer than the limit."""


class Full(Config):
    """Every parameter is trained, as in the paper."""

    kind: Literal["full"] = "full"


class Lora(Config):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685); extra `lora`.

    Batches, loss and export are the same; what is exported has the adapters merged in and lies beside them. Adapters
    want a larger `learning_rate` than the paper's full fine-tune: 1e-4 to 2e-4 is usual.
    """

    kind: Literal["lora"] = "lora"

    rank: int = Field(default=16, ge=1)
    """Inner dimension of the adapters."""

    alpha: float = Field(default=32, gt=0)
    """The adapters' product is scaled by alpha / rank."""

    dropout: float = Field(default=0.05, ge=0, lt=1)
    """On the adapters' input, beside the recipe's own dropout."""

    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which linear layers get adapters: all but the output layer (Dettmers et al. 2023, arXiv:2305.14314, section 4),
    or those whose name ends so: `[q_proj, v_proj]` are the first authors'."""

    def packages(self) -> Sequence[Package]:
        """Return what puts adapters into a model."""
        return (PEFT,)


Method = Annotated[Full | Lora, Field(discriminator="kind")]


class TrainRecipe(Config):
    """How every model is fine-tuned. Hashed into each model's fingerprint."""

    version: int = Field(default=1, ge=1)
    """Raised by hand when the meaning of training changes."""

    method: Method = Full()
    """Which parameters learn: `{kind: full}`, or `{kind: lora}` for those without 64 GPUs."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Rate of the first step (after warm-up); section 3.1."""

    final_learning_rate: float = Field(default=9e-6, ge=0)
    """Rate of the last step, an absolute rate and not a factor; the decay to it is linear; section 3.1."""

    learning_rates: dict[str, float] = Field(default_factory=dict)
    """First rate by model name (`backward`, `m0`, `m1`, ...) where it differs from `learning_rate`."""

    final_learning_rates: dict[str, float] = Field(default_factory=dict)
    """Last rate by model name where it differs from `final_learning_rate`."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps that climb linearly to `learning_rate`. The paper reports none."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled (AdamW), on every parameter; section 3.1 gives the value alone."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability, set on every dropout that the model's configuration names (Llama, Qwen: attention only)."""

    batch_examples: int | None = Field(default=None, ge=1)
    """Examples of one optimizer step; None: the paper's rule, 32, or 8 when there are fewer than 3,000."""

    steps: dict[str, int] = Field(default_factory=dict)
    """Optimizer steps by model name; a model not named takes the paper's table by its number of examples."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's; not reported, these are LLaMA's own (Touvron et al. 2023, arXiv:2302.13971, section 2.3)."""

    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's; not reported."""

    gradient_clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the global gradient; not reported, LLaMA's own. None: never clipped."""

    max_length_tokens: int = Field(default=2048, ge=8)
    """Longest example, prompt and response together; not reported. The model's own context bounds it too."""

    joint: bool = True
    """`m1`, `m2`, ... learn from the seed and the kept pairs; false: from the kept pairs alone, the paper's ablation
    "augmented only". Not hashed by itself: which pairs a model learned from is in its fingerprint."""

    too_long: TooLong = "drop"
    """What happens to longer examples: dropped and counted, or cut at the end (then they teach no end token)."""

    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Of the seed pairs, those held out of every model's training, by the hash of their ids, to measure the loss on
    them. 0, since the paper trains on all of its seed."""

    validate_every_steps: int = Field(default=100, ge=1)
    """How often, and after the last step, the loss on the held-out pairs is measured."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and arithmetic; bfloat16 keeps float32 master weights in the optimizer."""

    seed: int = Field(default=0, ge=0)
    """Decides the order of examples and the dropout masks."""

    spike_factor: float | None = Field(default=None, gt=1)
    """A step whose loss is above this many times the median of the 20 steps before counts as bad, as one without a
    number always does. None: off, for batches of 8 or 32 short texts differ by themselves, and how much is a matter of
    the data."""

    on_bad_loss: Literal["stop", "skip"] = "stop"
    """What follows a bad step, whose update is never applied: the run stops, or goes on with the next step. Not hashed,
    like `max_skipped_steps`: no step depends on it before one is bad, and then one may change it and go on."""

    max_skipped_steps: int = Field(default=10, ge=0)
    """Bad steps of one model after which the run stops all the same. Not hashed."""

    @model_validator(mode="after")
    def _rates_and_steps_are_usable(self) -> Self:
        bad = {name: count for name, count in self.steps.items() if count < 1}
        if bad:
            raise ValueError(f"steps must be at least 1, got {bad}")
        rates = {"learning_rates": self.learning_rates, "final_learning_rates": self.final_learning_rates}
        for field, values in rates.items():
            if any(rate < 0 for rate in values.values()):
                raise ValueError(f"{field} must not be negative, got {values}")
        return self

    def packages(self) -> Sequence[Package]:
        """Return what every training needs."""
        return (TORCH, TRANSFORMERS, DEEPSPEED, ACCELERATE)

    def of(self, model: str) -> "TrainRecipe":
        """Return the settings of one model alone: other models' steps and rates leave its fingerprint be."""
        first, last = self.rates(model)
        steps = {model: self.steps[model]} if model in self.steps else {}
        alone = {"learning_rates": {}, "final_learning_rates": {}, "steps": steps}
        return self.model_copy(update={"learning_rate": first, "final_learning_rate": last, **alone})

    def identity(self) -> dict[str, object]:
        """Return what is hashed."""
        return self.model_dump(mode="json", exclude={"joint", "on_bad_loss", "max_skipped_steps"})

    def rates(self, model: str) -> tuple[float, float]:
        """Return the first and the last learning rate of a model."""
        first = self.learning_rates.get(model, self.learning_rate)
        return first, self.final_learning_rates.get(model, self.final_learning_rate)
