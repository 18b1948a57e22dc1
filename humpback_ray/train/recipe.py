"""The recipe of a fine-tune: the paper's constants, and our choices where it reports none.

From the paper (Li et al. 2023, arXiv:2308.06259, section 3.1 and the data-scaling tables): learning rates, weight
decay, dropout, batch sizes, the number of steps by the number of examples, loss on output tokens only.

Our choices, where the paper is silent: sequence length, betas and epsilon, gradient clipping, warm-up, number format,
which parameters decay (all), where dropout acts (wherever the model's configuration has a dropout; in the Llama family
only in attention), and the backward model's settings (the same as the others').
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from humpback_ray.config import Config
from humpback_ray.packages import ACCELERATE, DEEPSPEED, PEFT, TORCH, TRANSFORMERS, Package

TooLong = Literal["drop", "truncate"]
"""What happens to examples that are longer than the limit."""


class Full(Config):
    """Every parameter is trained, as in the paper."""

    kind: Literal["full"] = "full"


class Lora(Config):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685); needs the extra `lora`.

    Batches and loss are the same. The export holds the merged model, and the adapters by themselves beside it.
    Adapters need a larger `learning_rate` than the paper's full fine-tune: 1e-4 to 2e-4 is usual.
    """

    kind: Literal["lora"] = "lora"

    rank: int = Field(default=16, ge=1)
    """Inner dimension of the adapters."""

    alpha: float = Field(default=32, gt=0)
    """Scales the adapters' product by alpha / rank."""

    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the adapters' input, in addition to the recipe's own dropout."""

    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers that get adapters: all but the output layer (Dettmers et al. 2023, arXiv:2305.14314, section 4),
    or the layers whose names end with one of these, each of which must match. `[q_proj, v_proj]` is the choice of Hu
    et al. Experts that are fused into one parameter get none: they are no linear layers."""

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_are_names(cls, value: object) -> object:
        if isinstance(value, str) and value != "all-linear":
            raise ValueError(f"it is all-linear or a list of names such as [{value}], not the text {value!r}")
        if isinstance(value, list | tuple):
            if not value or not all(isinstance(name, str) and name.strip(". ") == name != "" for name in value):
                raise ValueError(f"it is all-linear or a list of names such as [q_proj, v_proj], not {list(value)}")
            if twice := sorted({name for name in value if value.count(name) > 1}):
                raise ValueError(f"it names {', '.join(twice)} twice")
        return value

    def packages(self) -> Sequence[Package]:
        """Return the package that puts adapters into a model."""
        return (PEFT,)


Method = Annotated[Full | Lora, Field(discriminator="kind")]


class TrainRecipe(Config):
    """How every model is fine-tuned. Hashed into each model's fingerprint."""

    version: int = Field(default=2, ge=1)
    """Version of what training computes; raise it by hand when that changes."""

    method: Method = Full()
    """Parameters that are trained: all with `{kind: full}`; adapters with `{kind: lora}`, if you lack 64 GPUs."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Learning rate of the first step (after warm-up); section 3.1."""

    final_learning_rate: float = Field(default=9e-6, ge=0)
    """Learning rate of the last step, an absolute rate and not a factor; the decay is linear; section 3.1."""

    learning_rates: dict[str, float] = Field(default_factory=dict)
    """First learning rate by model name (`backward`, `m0`, `m1`, ...) where it differs from `learning_rate`."""

    final_learning_rates: dict[str, float] = Field(default_factory=dict)
    """Last learning rate by model name where it differs from `final_learning_rate`."""

    warmup_steps: int = Field(default=0, ge=0)
    """Number of steps in which the rate rises linearly to `learning_rate`. The paper reports no warm-up."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay (AdamW) of every parameter; section 3.1 gives only the value."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability, set on every dropout that the model's configuration names (Llama, Qwen: attention only)."""

    batch_examples: int | None = Field(default=None, ge=1)
    """Examples per optimizer step. None: the paper's rule, 32, or 8 with fewer than 3,000 examples."""

    steps: dict[str, int] = Field(default_factory=dict)
    """Optimizer steps by model name. Other models take the steps of the paper's table for their number of examples."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Betas of AdamW. The paper does not report them; these are LLaMA's (Touvron et al. 2023, arXiv:2302.13971,
    section 2.3)."""

    epsilon: float = Field(default=1e-8, gt=0)
    """Epsilon of AdamW. The paper does not report it."""

    gradient_clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the global gradient. The paper does not report it; this is LLaMA's. None: no clipping."""

    max_length_tokens: int = Field(default=2048, ge=8)
    """Longest example, prompt and response together. The paper does not report it. The model's context is a limit
    too."""

    joint: bool = True
    """Whether `m1`, `m2`, ... learn from the seed and the kept pairs, or (false) from the kept pairs alone, the paper's
    ablation "augmented only". Not hashed by itself: a model's fingerprint says which pairs it learned from."""

    too_long: TooLong = "drop"
    """Whether longer examples are dropped and counted, or cut at the end (then they teach no end token)."""

    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the seed pairs that no model is trained on, chosen by the hash of their ids; the validation loss is
    measured on them. 0 by default, since the paper trains on its whole seed."""

    validate_every_steps: int = Field(default=100, ge=1)
    """Steps between measurements of the loss on the held-out pairs; it is measured after the last step too."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of weights and arithmetic; bfloat16 keeps float32 master weights in the optimizer."""

    seed: int = Field(default=0, ge=0)
    """Seed of the order of examples and of the dropout masks."""

    spike_factor: float | None = Field(default=None, gt=1)
    """A step is bad if its loss is more than this many times the median of the 20 steps before. A step with a
    non-finite loss is always bad. None: spikes are not bad; batches of 8 or 32 short texts differ anyway, and how much
    depends on the data."""

    on_bad_loss: Literal["stop", "skip"] = "stop"
    """Whether the run stops at a bad step or continues with the next one; the update of a bad step is never applied.
    Not hashed, and neither is `max_skipped_steps`: no step depends on them before one is bad, and then you may change
    them and resume."""

    max_skipped_steps: int = Field(default=10, ge=0)
    """Number of bad steps of one model that are skipped; the run stops at the next one. Not hashed."""

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
        """Return the packages that every training needs."""
        return (TORCH, TRANSFORMERS, DEEPSPEED, ACCELERATE)

    def of(self, model: str) -> "TrainRecipe":
        """Return the settings of one model: other models' steps and rates do not change its fingerprint."""
        first, last = self.rates(model)
        steps = {model: self.steps[model]} if model in self.steps else {}
        alone = {"learning_rates": {}, "final_learning_rates": {}, "steps": steps}
        return self.model_copy(update={"learning_rate": first, "final_learning_rate": last, **alone})

    def identity(self) -> dict[str, object]:
        """Return the fields that are hashed."""
        return self.model_dump(mode="json", exclude={"joint", "on_bad_loss", "max_skipped_steps"})

    def rates(self, model: str) -> tuple[float, float]:
        """Return the first and the last learning rate of a model."""
        first = self.learning_rates.get(model, self.learning_rate)
        return first, self.final_learning_rates.get(model, self.final_learning_rate)
