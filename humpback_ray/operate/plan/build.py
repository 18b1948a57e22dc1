"""Plan a whole run: memory, steps, hours and dollars of every stage, from a configuration alone.

Nothing starts and no weights are read. Counts and rates are the assumptions of the configuration's `plan` section, or
the measurements of a pilot (`<root>-pilot`); `Plan.sources` says which. Not counted: global steps on a CPU (minutes),
machines that wait between stages, the price of storage.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.engines import EngineConfig
from humpback_ray.graph import Graph, Node, models
from humpback_ray.operate.plan.checkpoints import Checkpoints, checkpoints
from humpback_ray.operate.plan.expected import Expected
from humpback_ray.operate.plan.inference import RowWork, Writer, row_s, weights_fit
from humpback_ray.operate.plan.measured import Measured
from humpback_ray.operate.plan.starting import export_s, start_s
from humpback_ray.operate.plan.training import HOST_SHARE, Batch, Step, choose, smallest, step, steps
from humpback_ray.placement import PoolPlacement
from humpback_ray.rates import PlanConfig
from humpback_ray.runconfig import RunConfig
from humpback_ray.train.data.schedule import schedule
from humpback_ray.train.memory import Layout
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.sizes import SIZES, Shape, shape_of


@dataclass(frozen=True)
class StagePlan:
    """Time and cost of one stage."""

    name: str
    machine: str
    devices: float
    rows: int
    """Documents, rows, or (for a training) examples."""
    tokens: float
    """Tokens that models read and write."""
    seconds: float
    dollars: float
    source: str
    """Source of the rate: "assumed", or the pilot."""


@dataclass(frozen=True)
class TrainingPlan:
    """One fine-tune."""

    model: str
    examples: int
    batch_examples: int
    steps: int
    tokens: float
    flops: float
    """For all steps, without recomputation by activation checkpointing."""
    step: Step
    """With the placement's workers."""
    options: list[Step]
    """With other numbers of workers, in ascending order."""
    smallest: Step | None
    sensible: Step | None
    checkpoints: Checkpoints
    start_s: float
    """Seconds before the first step."""
    export_s: float
    """Seconds after the last one, for the export and its check."""

    @property
    def seconds(self) -> float:
        """Seconds from the first worker to the checked model."""
        return self.start_s + self.steps * self.step.seconds + self.checkpoints.seconds + self.export_s


@dataclass(frozen=True)
class Plan:
    """The answer of `jobs.plan`."""

    size: str
    shape: Shape
    layout: Layout
    trainings: list[TrainingPlan]
    stages: list[StagePlan]
    others: list[str]
    """Stages that are not counted because they take minutes."""
    problems: list[str]
    """Placements that do not fit, and what to change."""
    sources: list[tuple[str, Any, str]]
    """Every assumption: field, value, source."""

    @property
    def tightest(self) -> TrainingPlan | None:
        """The training whose workers need the most memory."""
        return max(self.trainings, key=lambda one: (one.step.lacks, one.step.memory.peak), default=None)

    @property
    def seconds(self) -> float:
        """Total of all stages, one after another."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def dollars(self) -> float:
        """Total of all stages."""
        return sum(stage.dollars for stage in self.stages)


def plan_run(config: RunConfig, measured: Measured | None = None) -> Plan:
    """Plan a run.

    Raises:
        ConfigError: the size of the base model is unknown.
    """
    size, shape = base_shape(config)
    planner = _Planner(config, shape, measured)
    trainings = [planner.training(name) for name in planner.models.values()]
    stages = list(planner.stages(trainings))
    planned = {stage.name for stage in stages}
    others = [node.name for node in planner.graph.to_make() if node.name not in planned]
    problems = planner.problems(trainings)
    return Plan(size, shape, planner.layout, trainings, stages, others, problems, planner.sources())


def base_shape(config: RunConfig) -> tuple[str, Shape]:
    """Return the name and shape of the base model: from `plan.size`, its config.json, or the sample.

    Raises:
        ConfigError: the size is unknown, or it is not set and cannot be read from a config.json of a known family.
    """
    if config.plan.size is not None:
        if config.plan.size not in SIZES:
            raise ConfigError(f"plan.size is {config.plan.size}, which is not among {', '.join(SIZES)}")
        return config.plan.size, SIZES[config.plan.size]
    if config.base_model is None:
        assert config.sample is not None, "RunConfig refuses a run without either"
        base = config.sample.base
        shape = Shape(base.width, base.layers, base.heads, base.heads, 3 * base.width, base.vocabulary,
                      base.width // base.heads, tied=True)  # fmt: skip
        return "the sample's base", shape
    try:
        return config.base_model, _shape_at(config.base_model)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the size of {config.base_model} cannot be read from its config.json ({error}); set plan.size to one of "
            f"{', '.join(SIZES)}"
        ) from error


def _shape_at(model: str) -> Shape:
    """Read the shape of a model from its config.json."""
    return shape_of(json.loads(storage.read_bytes(storage.join(storage.located(model), "config.json"))))


def rewriter_shape(config: RunConfig) -> Shape | None:
    """Return the shape of the rewriting model; None if there is none, or its config.json does not tell."""
    if config.rewrite.model is None:
        return None
    try:
        return _shape_at(config.rewrite.model)
    except (OSError, ValueError, KeyError):
        return None


class _Planner:
    """Plans a run's stages, one by one."""

    def __init__(self, config: RunConfig, shape: Shape, measured: Measured | None) -> None:
        self.config, self.rates, self.shape, self.measured = config, config.plan, shape, measured
        self.rewriter = rewriter_shape(config)
        self.graph = Graph(config)
        self.models = {
            node.name: name
            for name, node in models({node.name: node for node in self.graph.to_make()}).items()
            if node.kind.section == "train"
        }
        self.layout = Layout.of(config.train.placement, config.train.recipe, config.train.placement.most_workers)
        segments = round(measured.segments) if measured and measured.segments else self.rates.segments
        self.expected = Expected(config, segments)

    def training(self, model: str) -> TrainingPlan:
        """Plan one fine-tune."""
        recipe: TrainRecipe = self.config.train.recipe
        examples, batch = self.expected.batch(model)
        count = schedule(recipe, model, examples).steps
        slower = self.slower()
        options = steps(self.shape, self.layout, batch, self.rates, slower)
        tokens = count * batch.tokens
        chosen = next(one for one in options if one.workers == self.layout.workers)
        placement, root, base = self.config.train.placement, self.config.root, self.config.base_model
        weights, machine = self.layout.element * self.shape.parameters, self.rates.on(self.layout.gpu)[1]
        return TrainingPlan(
            model=model, examples=examples, batch_examples=batch.examples, steps=count, tokens=tokens,
            flops=3 * self.shape.forward_flops(tokens, batch.context), step=chosen,
            options=options, smallest=smallest(options), sensible=choose(options),
            checkpoints=checkpoints(self.shape, placement, count, chosen, root, machine, self.rates),
            start_s=start_s(weights, base or root, self.rates), export_s=export_s(weights, root, self.rates),
        )  # fmt: skip

    def slower(self) -> float:
        """Return measured divided by planned seconds of the pilot's step; 1 without a pilot."""
        found = self.measured.step if self.measured else None
        if found is None:
            return 1.0
        layout = replace(self.layout, workers=found.workers)
        first = next(iter(self.models.values()), None)
        deviation = self.expected.batch(first)[1].deviation if first else 0.0
        batch = Batch(
            found.examples, found.tokens / found.examples, deviation, self.config.train.recipe.max_length_tokens
        )
        return found.seconds / step(self.shape, layout, batch, self.rates).seconds

    def stages(self, trainings: Sequence[TrainingPlan]) -> Iterator[StagePlan]:
        """Plan every stage that takes more than minutes."""
        by_name = {training.model: training for training in trainings}
        for node in self.graph.to_make():
            if node.kind.name == "segments":
                yield self._cutting()
            elif node.name in self.models:
                yield self._training_stage(node.name, by_name[self.models[node.name]])
            elif work := self.expected.work(node):
                yield self._pool_stage(node, *work)

    def _cutting(self) -> StagePlan:
        placement, rates = self.config.corpus.placement, self.rates
        cpus = placement.most_replicas * placement.cpus_per_replica
        found = self.measured.cutting_s if self.measured else None
        seconds = (found or rates.pages / rates.pages_per_s) / cpus
        dollars = seconds * rates.dollars_per_s({"CPU": cpus})
        return StagePlan("segments", "cpu", cpus, rates.pages, 0, seconds, dollars, self._source(found))

    def _training_stage(self, name: str, training: TrainingPlan) -> StagePlan:
        placement = self.config.train.placement
        machine, _ = self.rates.on(placement.gpus_per_worker)
        needs = placement.most()
        found = self.measured.step if self.measured else None
        return StagePlan(
            name, machine, needs["GPU"] or needs["CPU"], training.examples, training.tokens, training.seconds,
            training.seconds * self.rates.dollars_per_s(needs), self._source(found),
        )  # fmt: skip

    def _pool_stage(self, node: Node, rows: int, work: RowWork) -> StagePlan:
        placement, section = self.graph.placement(node.name), getattr(self.config, node.kind.section)
        assert isinstance(placement, PoolPlacement), f"{node.name} is made by a pool of engines"
        rates, gpus, replicas = self.rates, placement.gpus_per_replica, placement.most_replicas
        name, machine = rates.on(gpus)
        engine: EngineConfig = section.recipe.engine
        shape, element = self._model_of(node.kind.section), _element(engine)
        writer = Writer.of(engine, placement, name, machine)
        found = self.measured.row_s.get(node.name) if self.measured else None
        if engine.kind == "echo":
            each = found or work.replies * engine.delay_s / placement.batch_rows
        else:
            each = found or row_s(shape, gpus or placement.cpus_per_replica, bool(gpus), element, work, rates, writer)
        seconds = start_s(element * shape.parameters, self._uri_of(node), rates, writer.kind) + rows * each / replicas
        needs = placement.most()
        tokens = rows * (work.prompt_tokens + work.replies * work.reply_tokens)
        return StagePlan(
            node.name, name, needs["GPU"] or needs["CPU"], rows, tokens, seconds,
            seconds * rates.dollars_per_s(needs), self._source(found),
        )  # fmt: skip

    def _model_of(self, section: str) -> Shape:
        return (self.rewriter if section == "rewrite" else None) or self.shape

    def _uri_of(self, node: Node) -> str:
        """Return the directory that holds the model of a stage, or the root below which it will be made."""
        if node.kind.section == "rewrite":
            return self.config.rewrite.model or self.config.root
        made = any(name in self.models for name in node.reads)
        return self.config.root if made else self.config.base_model or self.config.root

    def _source(self, found: Any) -> str:
        return f"measured in {self.measured.root}" if self.measured and found else "assumed"

    def problems(self, trainings: Sequence[TrainingPlan]) -> list[str]:
        """List placements that do not fit."""
        found = list(self._too_large(trainings))
        sections = dict.fromkeys(node.kind.section for node in self.graph.to_make() if self.expected.work(node))
        for name in sections:
            section = getattr(self.config, name)
            element = _element(section.recipe.engine)
            gpus, weights = section.placement.gpus_per_replica, element * self._model_of(name).parameters
            if gpus and not weights_fit(weights, gpus, self.rates):
                room = gpus * self.rates.on(gpus)[1].memory_bytes
                found.append(
                    f"{name}.placement: {gpus:g} x {self.rates.machine} hold {room / 1e9:.0f} GB, but the weights "
                    f"alone are {weights / 1e9:.0f} GB; raise gpus_per_replica"
                )
        return found

    def _too_large(self, trainings: Sequence[TrainingPlan]) -> Iterator[str]:
        """Name the training that lacks the most memory with as many workers as there may be, or else as few."""
        for workers in dict.fromkeys(reversed(self.config.train.placement.least_and_most)):
            layout = replace(self.layout, workers=workers)
            tried = [
                (step(self.shape, layout, self.expected.batch(one.model)[1], self.rates), one) for one in trainings
            ]
            lacking = [pair for pair in tried if not pair[0].fits]
            if lacking:
                yield self._lacking(*max(lacking, key=lambda pair: pair[0].lacks))
                return

    def _lacking(self, worst: Step, training: TrainingPlan) -> str:
        machine, row = self.rates.on(self.layout.gpu)
        held, least = worst.memory, training.smallest
        ways = [f"{least.workers} workers would fit" if least else "no number of workers would fit"]
        if settings := list(self._helpful(worst, training.model)):
            ways.append(f"or set {', '.join(settings)}")
        return (
            f"train.placement: each of {worst.workers} workers on {machine} needs {held.peak / 1e9:.1f} GB for "
            f"{training.model} and, for offloaded state and the copy of a checkpoint, "
            f"{(held.host + held.checkpoint) / 1e9:.0f} GB of host memory; {self.rates.usable(row) / 1e9:.1f} GB and "
            f"{row.host_bytes * HOST_SHARE / 1e9:.0f} GB are usable; {', '.join(ways)}"
        )

    def _helpful(self, worst: Step, model: str) -> Iterator[str]:
        """Name the settings that would each lower what a worker lacks."""
        layout, limit = replace(self.layout, workers=worst.workers), self.config.train.recipe.max_length_tokens
        partitioned = {"stage": max(layout.stage, 2), "offload_optimizer": True}
        changes: dict[str, dict[str, Any]] = {
            "zero_stage=3": {"stage": 3},
            "activation_checkpointing=true": {"checkpointing": True},
            f"offload_optimizer=true{' with zero_stage=2' if layout.stage < 2 else ''}": partitioned,
            f"micro_batch_tokens={limit}": {"micro_batch_tokens": limit},
        }
        for name, change in changes.items():
            batch = self.expected.batch(model)[1]
            if step(self.shape, replace(layout, **change), batch, self.rates).lacks < worst.lacks:
                yield name

    def sources(self) -> list[tuple[str, Any, str]]:
        """List every assumption with its source."""
        listed: list[tuple[str, Any, str]] = []
        given = self.rates.model_fields_set
        for field, info in PlanConfig.model_fields.items():
            if field in ("size", "machines", "machine"):
                continue
            said = " ".join((info.description or "").split())
            listed.append((field, getattr(self.rates, field), "the configuration" if field in given else said))
        for name in dict.fromkeys((self.rates.machine, "cpu")):
            for field, value in self.rates.known[name].model_dump().items():
                source = "Assumed; set yours." if name == "cpu" or field == "dollars_per_hour" else "Data sheet."
                own = name in self.rates.machines
                listed.append((f"{name}.{field}", value, "the configuration" if own else source))
        if self.config.rewrite.model:
            source = "its config.json" if self.rewriter else "the base model's: its config.json could not be used"
            listed.append(("rewrite.model: parameters", self._model_of("rewrite").parameters, source))
        return [*listed, *(self.measured.said() if self.measured else [])]


def _element(engine: EngineConfig) -> int:
    """Return the bytes of a weight in an engine."""
    return 4 if getattr(engine, "dtype", "") == "float32" else 2
