"""The configuration of a whole run: where it is kept, and a section per part of the method.

Which stages it leads to is the graph's business (graph.py).
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
    """Directory or s3:// URI that receives everything."""

    reuse: dict[str, str] = Field(default_factory=dict)
    """Finished stages of other runs, by name: `{corpus: s3://bucket/other-run/corpus}`. Their manifests enter the
    fingerprints, so what they hold cannot change unseen."""

    base_model: str | None = None
    """Directory of the base model (safetensors and tokenizer), local or s3://; None: the sample's."""

    sample: SampleConfig | None = None
    """The embedded default: a toy web, its seed pairs and a base model, made on the spot where inputs are not given."""

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
    """What `jobs.plan` assumes, and the prices by which `max_dollars` counts. Not hashed."""

    max_hours: float | None = Field(default=None, gt=0)
    """The run is stopped once its submissions have taken so long together; the same command goes on with a higher one.
    Not hashed. None: no limit."""

    max_dollars: float | None = Field(default=None, gt=0)
    """The same for what its stages' placements have cost by the prices of `plan`, pools counted at their largest. Not
    hashed. None: no limit."""

    storage_patience_minutes: float = Field(default=10.0, ge=0)
    """How long the driver goes on trying while S3 does not answer, or credentials have expired; workers are started
    again meanwhile. Not hashed."""

    check_packages: bool = True
    """Whether a job looks, before its first stage, for the libraries that its workers will import. The driver's
    environment stands for theirs; false where only the workers have them. Not hashed."""

    pilot: float | None = Field(default=None, gt=0, le=1)
    """Run so much of the corpus, chosen by hash, and few steps of each training, in `<root>-pilot`, to measure rates
    for `jobs.plan`. None: all of it."""

    @model_validator(mode="after")
    def _inputs_come_from_somewhere(self) -> Self:
        given = {
            "base_model": self.base_model,
            "seed.recipe.inputs": self.seed.recipe.inputs or self.reuse.get("seed"),
            "corpus.recipe.inputs": self.corpus.recipe.inputs or self.reuse.get("corpus") or self.reuse.get("segments"),
        }
        missing = [field for field, value in given.items() if not value]
        if missing and self.sample is None:
            raise ValueError(f"{missing[0]} is not set, and there is no `sample` section to take it from")
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
                    f"a GPU; set {name}.placement.cache_bytes, the memory for keys and values of each"
                )
        return self

    def sections(self) -> dict[str, Config]:
        """Return what decides what is computed, and where, by name: all sections that are set, but for `plan`."""
        found = {name: getattr(self, name) for name in type(self).model_fields if name != "plan"}
        return {name: section for name, section in found.items() if isinstance(section, Config)}

    def files(self) -> dict[str, Sequence[str]]:
        """Return the patterns of files from outside, by the section that names them; [] where it names none."""
        recipes = {name: getattr(section, "recipe", None) for name, section in self.sections().items()}
        return {n: getattr(recipe, "inputs", None) or () for n, recipe in recipes.items() if hasattr(recipe, "inputs")}

    def recipes(self) -> dict[str, Any]:
        """Return what is hashed: every section's recipe, without placements and locations."""
        found = {}
        for name, section in self.sections().items():
            dumped = section.model_dump(mode="json")
            found[name] = {key: value for key, value in dumped.items() if not key.endswith(("placement", "model"))}
            found[name].get("recipe", {}).pop("inputs", None)
        return found


def pilot_root(root: str) -> str:
    """Return where the pilot of a run lies: beside it, since it is another run."""
    return f"{root.rstrip('/')}-pilot"
