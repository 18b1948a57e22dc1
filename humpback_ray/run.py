"""A run: one configuration, one root directory, many submissions.

    <root>/run.json                   the resolved recipes and inputs of the last submission that was not refused
    <root>/spent/<id>.json            see limits.py
    <root>/submissions/<id>.json      how each submission ran it: placements, versions, Ray's job id
    <root>/<stage>/...                see stages/ledger.py

`Run` resolves every input from outside before anything is started. What a later submission may change is the stages'
business: each holds its own recipe.json and refuses another one, and since they run in order, none that is finished
lies behind one that still has to be made.
"""

import functools
import json
import logging
import re
import secrets
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from pydantic import Field, model_validator

from humpback_ray import storage
from humpback_ray.augment import AugmentConfig
from humpback_ray.config import Config, ConfigError, difference, short
from humpback_ray.corpus.build import CorpusConfig
from humpback_ray.curate.rounds import CurateConfig
from humpback_ray.curate.scorers import Chained
from humpback_ray.engines import VllmEngine
from humpback_ray.evaluate.answers import EvaluateConfig
from humpback_ray.hub.ids import refuse_dataset, refuse_model
from humpback_ray.inputs.contamination import ContaminationConfig
from humpback_ray.inputs.promptfiles import load_prompts
from humpback_ray.packages import Package, declared, refuse_missing
from humpback_ray.placement import PoolPlacement, TaskPlacement, TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.rates import PlanConfig
from humpback_ray.rewrite import RewriteConfig
from humpback_ray.sample.build import SampleConfig
from humpback_ray.seed import SeedConfig
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.parsing import check_types, read_as
from humpback_ray.stages.provenance import versions
from humpback_ray.stages.stage import Place
from humpback_ray.storage.inventory import Hashes, Inventory, refuse_untemplated, resolve, resolve_model
from humpback_ray.train.tune import TrainConfig

logger = logging.getLogger(__name__)


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
        for name in ("augment", "curate", "rewrite", "evaluate"):
            section = getattr(self, name)
            placement: PoolPlacement = section.placement
            shared = isinstance(section.recipe.engine, VllmEngine) and 0 < placement.gpus_per_replica < 1
            if shared and placement.cache_bytes is None:
                raise ValueError(
                    f"{name}.placement.gpus_per_replica is {placement.gpus_per_replica:g}, so vLLM engines share "
                    f"a GPU; set {name}.placement.cache_bytes, the memory for keys and values of each"
                )
        return self

    @model_validator(mode="after")
    def _reused_stages_exist(self) -> Self:
        known = self.stage_names()
        unknown = [name for name in self.reuse if name not in known]
        if unknown:
            raise ValueError(f"reuse names {unknown[0]}, which is no stage; the stages are {', '.join(known)}")
        return self

    def stage_names(self) -> list[str]:
        """Return the names of the stages, in the order in which they run."""
        scorer = self.curate.recipe.scorer
        prescored_by = [scorer.first.rater] if isinstance(scorer, Chained) else []
        return stage_names(len(self.curate.recipe.rounds), prescored_by, self.rewrite.model is not None)

    def placement_of(self, stage: str) -> PoolPlacement | TaskPlacement | TrainPlacement | None:
        """Return the placement by which a stage is run; None of one that has none."""
        for pattern, section, field in PLACED:
            if re.fullmatch(pattern, stage):
                return getattr(getattr(self, section), field, None)
        return None

    def packages_of(self, stages: Collection[str]) -> list[tuple[str, Package]]:
        """Return key and library of all that workers need for some stages."""
        found: list[tuple[str, Package]] = []
        for pattern, key in NEEDS:
            if any(re.fullmatch(pattern, stage) for stage in stages):
                section: Any = self
                for part in key.split("."):
                    section = getattr(section, part, None)
                found += declared(section, key) if section is not None else []
        return found

    def check_packages_of(self, stages: Collection[str]) -> None:
        """Refuse to make stages for which this environment lacks libraries; finished stages need none.

        Raises:
            ConfigError: in one line, with the command that installs them.
        """
        if not self.check_packages:
            return
        try:
            refuse_missing(self.packages_of(stages))
        except ConfigError:
            root = storage.located(self.root)
            refuse_missing(self.packages_of([name for name in stages if not (
                name in self.reuse or storage.exists(storage.join(root, name, "manifest.json"))
            )]))  # fmt: skip

    def recipes(self) -> dict[str, Any]:
        """Return what is hashed: every section's recipe, without placements and locations."""
        sections: dict[str, Any] = {"chat": self.chat.model_dump(mode="json")}
        for name in SECTIONS:
            section = getattr(self, name)
            if section is not None:
                dumped = section.model_dump(mode="json")
                recipes = {key: value for key, value in dumped.items() if not key.endswith(("placement", "model"))}
                recipes.get("recipe", {}).pop("inputs", None)
                sections[name] = recipes
        return sections


PLACED = (
    (r"sample/(web|base|check)", "sample", "placement"), (r"seed", "seed", "placement"),
    (r"segments", "corpus", "placement"), (r"corpus", "corpus", "duplicates_placement"),
    (r"tokens/.+|round-\d+/tokens", "train", "tokens_placement"), (r"models/.+", "train", "placement"),
    (r"candidates", "augment", "placement"),
    (r"canaries|round-\d+/curated", "curate", "select_placement"),
    (r"sample/ratings|prescores|round-\d+/(pre|canary-)?scores", "curate", "placement"),
    (r"round-\d+/rewritten", "rewrite", "placement"),
    (r"evaluation/prompts", "evaluate", "prompts_placement"), (r"evaluation/m\d+", "evaluate", "placement"),
)  # fmt: skip
"""Of stages, by their names: the section and the field that hold the placement."""


NEEDS = (
    (r"models/.+", "train.recipe"), (r"models/.+", "train.placement"), (r"candidates", "augment.recipe.engine"),
    (r"candidates", "augment.recipe.filters"),
    (r"sample/ratings|prescores|round-\d+/(pre|canary-)?scores|compare/.+", "curate.recipe.engine"),
    (r"round-\d+/rewritten", "rewrite.recipe.engine"), (r"evaluation/m\d+", "evaluate.recipe.engine"),
    (r"segments", "corpus.recipe"),
)  # fmt: skip
"""Of stages, by their names: a part of the configuration whose libraries their workers import."""


def pilot_root(root: str) -> str:
    """Return where the pilot of a run lies: beside it, since it is another run."""
    return f"{root.rstrip('/')}-pilot"


SECTIONS = ("sample", "seed", "corpus", "train", "augment", "curate", "rewrite", "evaluate", "contamination")


class Run:
    """An opened run.

    Args:
        config: what to run.
        submission_id: by which its attempts and leases name the submission; None: one made of the time. One that was
            here before (its entrypoint was started again) gets -2, -3, ...
        begin: whether to write down the run and the submission at once; else `begin` does, after further checks.

    Raises:
        ConfigError: a missing input, a model directory that is none, a root that cannot be written, a stage of another
            run that is not what it is to be reused as.
    """

    def __init__(self, config: RunConfig, submission_id: str | None = None, begin: bool = True) -> None:
        try:
            self._refuse_hub_ids(config)
            self.root = storage.located(config.root)
            self.reuse = {name: storage.located(uri) for name, uri in config.reuse.items()}
            self.base_model = storage.located(config.base_model) if config.base_model else None
            self.rewriter = storage.located(config.rewrite.model) if config.rewrite.model else None
            storage.check_writable(self.root)
            self.config = config
            self.place: Place | None = None
            self.hashes = Hashes(storage.join(self.root, "hashes.json"))
            self.inputs = self._resolve()
            for name in self.reuse:
                self.reused(name)
        except OSError as error:
            raise ConfigError(storage.words(error)) from error
        self.submission, self._wanted = "", submission_id
        self.retrying: str | None = None
        """The stage whose quarantined rows are tried again."""
        if begin:
            self.begin()

    def begin(self, ray_job_id: str | None = None) -> None:
        """Write down what the run is, and this submission.

        Args:
            ray_job_id: Ray's id of the driver: the name of its logs on the cluster.
        """
        try:
            self.record = self._record() | ({"ray_job_id": ray_job_id} if ray_job_id else {})
            self.submission = self._submit(self._wanted)
        except OSError as error:
            raise ConfigError(storage.words(error)) from error

    @staticmethod
    def _refuse_hub_ids(config: RunConfig) -> None:
        """Refuse names of the Hub, with the command that fetches them."""
        for field, model in (("base_model", config.base_model), ("rewrite.model", config.rewrite.model)):
            if model:
                refuse_model(field, model)
        for name in ("seed", "corpus", "evaluate", "contamination"):
            for pattern in getattr(config, name).recipe.inputs or ():
                refuse_dataset(f"{name}.recipe.inputs", pattern)

    def _resolve(self) -> dict[str, Inventory]:
        """Find every input from outside; those of the sample are found when it is made."""
        config, found = self.config, {}
        given = {
            "seed": config.seed.recipe.inputs,
            "corpus": config.corpus.recipe.inputs,
            "evaluate": config.evaluate.recipe.inputs,
            "contamination": config.contamination.recipe.inputs,
        }
        for name, patterns in given.items():
            if patterns and name not in self.reuse:
                found[name] = resolve(f"{name}.recipe.inputs", patterns, self.hashes)
        if "corpus" in found:
            config.corpus.check_files(found["corpus"])
        for name in found.keys() & {"evaluate", "contamination"}:
            count = sum(load_prompts(file).num_rows for file in found[name].files)
            if name == "evaluate" and count < (least := config.evaluate.recipe.min_kept):
                raise StageFailed(
                    f"evaluation/prompts: {count:,} prompts are fewer than {name}.recipe.min_kept = {least:,}"
                )
        if self.base_model:
            found["base_model"] = resolve_model("base_model", self.base_model, self.hashes)
        if self.rewriter:
            found["rewriter"] = resolve_model("rewrite.model", self.rewriter, self.hashes)
            if config.rewrite.recipe.layout == "own":
                refuse_untemplated("rewrite.recipe.layout", "rewrite.model", found["rewriter"])
        for setting, scorer in config.curate.scorers().items():
            if scorer.layout == "own" and scorer.rater == "base":
                refuse_untemplated(f"{setting}.layout", "base_model", found.get("base_model"))
        return found

    def _record(self) -> dict[str, Any]:
        """Write down what the run is; return how this submission runs it."""
        inputs = {name: value.identity for name, value in self.inputs.items()}
        what, uri = (
            {**self.config.recipes(), "reuse": self.reuse, "inputs": inputs},
            storage.join(self.root, "run.json"),
        )
        if not storage.create(uri, _json(what)) and (parted := difference(storage.read_json(uri), what)):
            field, old, new = parted
            logger.info(
                "%s: %s was %s, this submission has %s; stages that have begun keep theirs", uri, field, short(old),
                short(new),
            )  # fmt: skip
            storage.write_bytes(uri, _json(what))
        config = self.config.model_dump(mode="json")
        return {"config": config, "reuse": self.reuse, "versions": versions(), "started": time.time()}

    def _submit(self, wanted: str | None) -> str:
        """Write down this submission under an id that no other has."""
        self.record["nonce"] = secrets.token_hex(3)
        first = re.sub(
            r"[^\w.-]", "-", wanted or time.strftime(f"%Y%m%dT%H%M%SZ-{self.record['nonce']}", time.gmtime())
        )
        number = 1
        while True:
            name = first if number == 1 else f"{first}-{number}"
            uri, data = storage.join(self.root, "submissions", f"{name}.json"), _json(self.record)
            if storage.create(uri, data) or storage.read_bytes(uri) == data:
                return name
            number += 1

    def at(self, name: str) -> Place:
        """Return the place of a stage in this run, which is the one worked on from now on."""
        check = functools.partial(refuse_read, self.root) if name == self.retrying else None
        self.place = Place(name, storage.join(self.root, name), self.submission, check)
        return self.place

    def state(self) -> str:
        """Say from storage how far the stage is that is worked on, for who ends a submission in the middle of it."""
        if self.place is None:
            return "no stage was begun"
        name, uri = self.place.name, self.place.uri
        if storage.exists(storage.join(uri, "manifest.json")):
            return f"{name} is done"
        if storage.exists(plan := storage.join(uri, "plan.json")):
            shards = len(storage.read_json(plan)["shards"])
            return f"{name} has {len(Ledger(uri, self.submission).committed())} of {shards} shards committed"
        checkpoints = storage.list_names(storage.join(uri, "checkpoints"))
        steps = [int(step) for checkpoint in checkpoints for step in re.findall(r"\bstep-(\d+)", checkpoint)]
        return f"{name} has a checkpoint of step {max(steps)}" if steps else f"{name} is not done"

    def reused(self, name: str) -> Manifest | None:
        """Return the manifest of a stage that another run finished, if the configuration says so.

        Raises:
            ConfigError: that stage is not finished, or is another one.
        """
        if name not in self.reuse:
            return None
        manifest = read_manifest(self.reuse[name])
        if manifest is None:
            raise ConfigError(f"reuse.{name}: {self.reuse[name]} is no finished stage (it has no manifest.json)")
        if manifest.stage != name:
            raise ConfigError(f"reuse.{name}: {self.reuse[name]} is the stage {manifest.stage}, not {name}")
        return manifest

    def finished(self) -> list[Manifest]:
        """Return the manifests of the stages that are finished, reused ones included, in the order of the run."""
        found = [
            self.reused(name) or read_manifest(storage.join(self.root, name)) for name in self.config.stage_names()
        ]
        return [manifest for manifest in found if manifest]


_RECORD_FILE = re.compile(r"[^./][^/]*\.json")


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def refuse_read(root: str, manifest: Manifest) -> None:
    """Refuse to change a stage of a run once another stage of it has begun with this one among its inputs.

    Raises:
        ConfigError: stages have; the message names them.
    """
    begun = []
    for name in stages_there(root):
        recipe = storage.join(root, name, "recipe.json")
        if storage.exists(recipe) and {"digest": manifest.digest} in storage.read_json(recipe)["inputs"].values():
            begun.append(name)
    if begun:
        raise ConfigError(
            f"{manifest.stage} of {root} was read by {', '.join(begun)}, so it stays as it is; to try its quarantined "
            f"rows again, use another root and reuse: the stages before {manifest.stage}"
        )


def stages_there(root: str) -> list[str]:
    """Return the names that stages of a run can have, those of its comparisons of scorers included."""
    return every_stage_name(f"compare/{name}" for name in storage.list_names(storage.join(root, "compare")))


Submission = tuple[storage.Listed, dict[str, Any]]
"""The file and the record of a submission."""


def finished_stages(root: str, submitted: Iterable[Submission] | None = None) -> dict[str, Manifest]:
    """Return the manifests of a run's finished stages by name, in their order; nothing is written.

    Those of other runs are found by what the others were made from, or by what a submission says that it reuses.
    """
    names = stages_there(root)
    found = {name: manifest for name in names if (manifest := read_manifest(storage.join(root, name)))}
    submitted = submissions(root) if submitted is None else submitted
    for name, uri in reused_stages(root, found.values(), submitted).items():
        if name not in found and (manifest := read_manifest(uri)):
            found[name] = manifest
    return {name: found[name] for name in names if name in found}


def reused_stages(root: str, manifests: Iterable[Manifest], submitted: Iterable[Submission]) -> dict[str, str]:
    """Return where stages of a run are that other runs made: by the manifests made from them, else by submissions."""
    found: dict[str, str] = {}
    for _, record in submitted:
        found |= record.get("reuse", {})
    todo, seen = list(manifests), set[str]()
    while todo:
        for uri in todo.pop().source_uris().values():
            if uri not in seen and not uri.startswith(f"{root}/") and (source := read_manifest(uri)):
                found[source.stage] = uri
                todo.append(source)
            seen.add(uri)
    return found


def latest_submission(root: str) -> tuple[storage.Listed | None, dict[str, Any]]:
    """Return the file and the record of the submission that started last, whatever its name; None, {} without one."""
    return max(submissions(root), key=_began, default=(None, {}))


def submissions(root: str) -> list[Submission]:
    """Return the last submissions, at most `MOST_SUBMISSIONS`, the one that started first first."""
    uri = storage.join(root, "submissions")
    files = [file for file in storage.listing(uri) if _RECORD_FILE.fullmatch(file.name)]
    files = sorted(files, key=lambda file: file.modified)[-MOST_SUBMISSIONS:]
    with ThreadPoolExecutor(READERS) as readers:
        names = [storage.join(uri, file.name) for file in files]
        records = list(readers.map(lambda name: read_as(_checked, storage.read_json(name), name), names))
    return sorted(zip(files, records, strict=True), key=_began)


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """Return a submission's record; raise where it is none."""
    check_types(_Record, record)
    return record


class _Record:
    """What is looked at of a submission's record, where it is there."""

    started: float
    config: dict[str, Any]
    reuse: dict[str, str]


def _began(submission: Submission) -> tuple[float, float]:
    file, record = submission
    return record.get("started", 0.0), file.modified


MOST_SUBMISSIONS = 16
"""Those written last; a run may be submitted again every few minutes, by a supervisor."""
READERS = 16
"""Records that are read at once."""


MOST_ROUNDS = 9
"""Rounds that are looked for when a root is searched for stages."""


def prescores_name(rater: str, round_number: int) -> str:
    """Return where a chain's cheap scores are: those of the base model are the same in every round."""
    return "prescores" if rater == "base" else f"round-{round_number}/prescores"


def stage_names(rounds: int, prescored_by: Collection[str] = (), rewritten: bool = False) -> list[str]:
    """Return the names of a run's stages, which are their directories, in the order in which they run.

    Args:
        rounds: how many.
        prescored_by: whose cheap scores there are: none, where no chain of scorers rates; "previous"; "base".
        rewritten: whether kept responses are rewritten.
    """
    names = ["sample/web", "seed", "segments", "corpus", "sample/base", "sample/check", "sample/ratings"]
    names += ["tokens/backward", "models/backward", "tokens/seed", "models/m0", "candidates", "canaries"]
    for t in range(1, rounds + 1):
        names += [prescores_name(rater, t) for rater in prescored_by]
        names += [f"round-{t}/{part}" for part in ("scores", "canary-scores", "curated")]
        names += [f"round-{t}/rewritten"] if rewritten else []
        names += [f"round-{t}/tokens", f"models/m{t}"]
    return list(dict.fromkeys([*names, "evaluation/prompts", *(f"evaluation/m{t}" for t in range(rounds + 1))]))


_COMPARISON = re.compile(r"(compare/(?:sample|round-\d+/[^/]+))/.+")


def every_stage_name(files: Iterable[str] = ()) -> list[str]:
    """Return the names that a run's stages can have, whatever its configuration.

    Args:
        files: of the root, among which those of comparisons of scorers are found by their names.
    """
    compared = sorted({match[1] for name in files if (match := _COMPARISON.fullmatch(name))})
    every = stage_names(MOST_ROUNDS, ("base", "previous"), rewritten=True)
    return every + sorted(compared, key=lambda name: name != "compare/sample")
