"""The argument of a function that makes a stage: its place, its settings and the stages that it reads."""

from collections.abc import Mapping

from humpback_ray import graph
from humpback_ray.inputs.contamination import HeldOut
from humpback_ray.records import TOKENS
from humpback_ray.run import Run
from humpback_ray.sample.build import SampleConfig, web_files
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.storage.inventory import Inventory, resolve


class StageContext:
    """A stage about to be made: where, by which settings, and what it reads.

    Args:
        run: the run.
        node: the stage.
        made: the stages above it, by name; it sees only those that the graph says it reads.
    """

    def __init__(self, run: Run, node: graph.Node, made: Mapping[str, Manifest]) -> None:
        self.run, self.node, self.round = run, node, node.round or 0
        self.reads = {name: made[name] for name in node.reads}
        self.place, self.config, self.chat = run.at(node.name), run.config, run.config.chat

    def __getitem__(self, name: str) -> Manifest:
        """Return a stage that this stage reads, by its name in the graph."""
        name = name.format(t=self.round)
        if name not in self.reads:
            raise KeyError(f"{self.node.name} does not read {name}; graph.py says what it reads")
        return self.reads[name]

    def files(self, section: str) -> Inventory:
        """Return a section's input files: the configuration's, else the sample's, else none."""
        if section in self.run.inputs:
            return self.run.inputs[section]
        if "sample/web" not in self.reads:
            return Inventory(())
        names = {"seed": "seed.jsonl", "corpus": "web/*.warc.gz", "evaluate": "prompts*.jsonl"}
        return resolve(f"{section}.recipe.inputs", [web_files(self["sample/web"], names[section])], self.run.hashes)

    @property
    def sample(self) -> SampleConfig:
        """The settings of the embedded default."""
        assert self.config.sample, "a run has stages of the sample only with its section; RunConfig checks that"
        return self.config.sample

    @property
    def held_out(self) -> HeldOut:
        """The prompts that no pair may contain."""
        named = self.run.inputs.get("contamination")
        return HeldOut.of(self.config.contamination.recipe, self.files("evaluate"), named)

    def model(self, name: str) -> Model:
        """Return a model that this stage reads, by its name in the graph."""
        return Model.of(self[name])

    @property
    def base(self) -> Model:
        """The base model."""
        return self.run.base or self.model("sample/base")

    @property
    def rater(self) -> Model:
        """The model that rates: the previous round's, or the base model."""
        read = [model for name, model in graph.models(self.reads).items() if name != "base"]
        return Model.of(read[0]) if read else self.base

    @property
    def rewriter(self) -> Model:
        """The model that rewrites."""
        assert self.run.rewriter, "a run has a stage that rewrites only with a model for it"
        return self.run.rewriter

    @property
    def prescores(self) -> Manifest | None:
        """The cheap scores of a chain of scorers; None without one."""
        name = graph.prescores(self.config)
        return self[name] if name else None

    @property
    def pairs(self) -> Manifest:
        """The stage whose ids this stage must account for, each exactly once."""
        return self.reads[self.node.ids_of]

    @property
    def tokens(self) -> list[Manifest]:
        """The token stages that this stage reads."""
        return [stage for name, stage in self.reads.items() if self.run.graph.nodes[name].kind.writes is TOKENS]
