"""The configuration of a whole run: where it is kept, and a section per part of the method.

graph.py decides which stages it leads to.
"""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from humpback_ray.augment import AugmentConfig
from humpback_ray.config import Config
from humpback_ray.corpus.build import CorpusConfig
from humpback_ray.curate.rounds import CurateConfig
from humpback_ray.engines import VllmEngine
from humpback_ray.evaluate.answers import EvaluateConfig
from humpback_ray.inputs.contamination import ContaminationConfig
from humpback_ray.placement import PoolPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.rates import PlanConfig
from humpback_ray.rewrite import RewriteConfig
from humpback_ray.sample.build import SampleConfig
from humpback_ray.seed import SeedConfig
from humpback_ray.train.tune import TrainConfig


class RunConfig(Config):
    """A whole run: where it is kept, and a section per stage."""

    root: str
    """Directory or s3:// URI that receives all output."""

    reuse: dict[str, str] = Field(default_factory=dict)
    """Finished stages of other runs, by name: `{corpus: s3://bucket/other-run/corpus}`. Their manifests enter the
    fingerprints, so their content cannot change unnoticed."""

    base_model: str | None = None
    """Directory of the base model (safetensors and tokenizer), local or s3://; None: the sample's."""

    sample: SampleConfig | None = None
    """The embedded default: a toy web, its seed pairs and a base model, generated for every input that is not given."""

    chat: ChatRecipe = ChatRecipe()
    seed: SeedConfig = Field(default_factory=SeedConfig)
    corpus: CorpusConfig = Field(default_factory=CorpusConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    curate: CurateConfig = Field(default_factory=CurateConfig)
    rewrite: RewriteConfig = RewriteConfig()
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    contamination: ContaminationConfig = ContaminationConfig()

    plan: PlanConfig = PlanConfig()
    """The assumptions of `jobs.plan`, and the prices that `max_dollars` uses. Not hashed."""

    max_hours: float | None = Field(default=None, gt=0)
    """Stop the run when its submissions together have taken this many hours; the same command with a higher limit
    resumes it. Not hashed. None: no limit."""

    max_dollars: float | None = Field(default=None, gt=0)
    """Stop the run when its stages' placements have cost this much by the prices of `plan`, with each pool counted at
    its maximum size. Not hashed. None: no limit."""

    storage_patience_minutes: float = Field(default=10.0, ge=0)
    """How long the driver retries while S3 does not answer or credentials have expired; meanwhile, workers are
    restarted. Not hashed."""

    check_packages: bool = True
    """Whether a job checks, before its first stage, that the libraries its workers will import are installed. It looks
    in the driver's environment; set false if only the workers have them. Not hashed."""

    pilot: float | None = Field(default=None, gt=0, le=1)
    """Run this share of the corpus, chosen by hash, and a few steps of each training, in `<root>-pilot`, to measure
    rates for `jobs.plan`. None: the whole run."""

    @model_validator(mode="after")
    def _inputs_come_from_somewhere(self) -> Self:
        given = {
            "base_model": self.base_model,
            "seed.recipe.inputs": self.seed.recipe.inputs or self.reuse.get("seed"),
            "corpus.recipe.inputs": self.corpus.recipe.inputs or self.reuse.get("corpus") or self.reuse.get("segments"),
        }
        missing = [field for field, value in given.items() if not value]
        if missing and self.sample is None:
            raise ValueError(f"{missing[0]} is not set, and no `sample` section is set to take it from")
        return self

    @model_validator(mode="after")
    def _shared_gpus_have_a_cache_each(self) -> Self:
        for name, section in self.sections().items():
            engine, placement = (
                getattr(getattr(section, "recipe", None), "engine", None),
                getattr(section, "placement", None),
            )
            if not isinstance(placement, PoolPlacement) or placement.cache_bytes is not None:
                continue
            if isinstance(engine, VllmEngine) and 0 < placement.gpus_per_replica < 1:
                raise ValueError(
                    f"{name}.placement.gpus_per_replica is {placement.gpus_per_replica:g}, so vLLM engines share "
                    f"a GPU; set {name}.placement.cache_bytes, the memory for keys and values of each engine"
                )
        return self

    def sections(self) -> dict[str, Config]:
        """Return the sections that decide what is computed, and where, by name: all that are set, except `plan`."""
        found = {name: getattr(self, name) for name in type(self).model_fields if name != "plan"}
        return {name: section for name, section in found.items() if isinstance(section, Config)}

    def files(self) -> dict[str, Sequence[str]]:
        """Return the patterns of outside files, by the section that names them; [] if it names none."""
        recipes = {name: getattr(section, "recipe", None) for name, section in self.sections().items()}
        return {n: getattr(recipe, "inputs", None) or () for n, recipe in recipes.items() if hasattr(recipe, "inputs")}

    def recipes(self) -> dict[str, Any]:
        """Return the settings that are hashed: every section's recipe, without placements and locations."""
        found = {}
        for name, section in self.sections().items():
            dumped = section.model_dump(mode="json")
            found[name] = {key: value for key, value in dumped.items() if not key.endswith(("placement", "model"))}
            found[name].get("recipe", {}).pop("inputs", None)
        return found


def pilot_root(root: str) -> str:
    """Return the root of a run's pilot: beside the run's own root, since it is another run."""
    return f"{root.rstrip('/')}-pilot"
