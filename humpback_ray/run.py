"""A run: one configuration, one root directory, many submissions.

    <root>/run.json                   the resolved recipes and inputs of the last submission that was not refused
    <root>/spent/<id>.json            see limits.py
    <root>/submissions/<id>.json      how each submission ran it: placements, versions, Ray's job id
    <root>/<stage>/...                see stages/ledger.py

`Run` resolves every outside input before anything starts. Each stage decides what a later submission may change: it
keeps its own recipe.json and refuses a different one. Stages run in order, so no finished stage comes after one that
still has to be made.
"""

import functools
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from humpback_ray import storage
from humpback_ray.config import ConfigError, difference, short
from humpback_ray.graph import Graph, stage_names
from humpback_ray.hub.ids import refuse_dataset, refuse_model
from humpback_ray.inputs.promptfiles import load_prompts
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.parsing import check_types, read_as
from humpback_ray.stages.provenance import versions
from humpback_ray.stages.stage import Place
from humpback_ray.storage.inventory import Hashes, Inventory, refuse_untemplated, resolve, resolve_model
from humpback_ray.train.base import looked_at

logger = logging.getLogger(__name__)


class Run:
    """An opened run.

    Args:
        config: what to run.
        submission_id: names the submission in its attempts and leases; None: an id made from the time. An id that is
            taken already (its entrypoint was started again) gets -2, -3, ...
        begin: record the run and the submission at once; else `begin` does, after further checks.
        trains: whether a model will be fine-tuned; then the configured base model is checked for that first.

    Raises:
        ConfigError: an input is missing, a model directory is not one or cannot be trained, the root cannot be written,
            or a reused stage of another run is unfinished or a different stage.
    """

    def __init__(
        self, config: RunConfig, submission_id: str | None = None, begin: bool = True, trains: bool = False
    ) -> None:
        try:
            self.graph = Graph(config)
            self._refuse_hub_ids(config)
            self.root = storage.located(config.root)
            self.reuse = {name: storage.located(uri) for name, uri in config.reuse.items()}
            storage.check_writable(self.root)
            self.config = config
            self.place: Place | None = None
            if trains:
                self._refuse_base()
            self.hashes = Hashes(storage.join(self.root, "hashes.json"))
            self.inputs = self._resolve()
            for name in self.reuse:
                self.reused(name)
        except OSError as error:
            raise ConfigError(storage.words(error)) from error
        self.submission, self._wanted = "", submission_id
        self.retrying: str | None = None
        """The stage whose quarantined rows are being retried."""
        if begin:
            self.begin()

    def begin(self, ray_job_id: str | None = None) -> None:
        """Record the run and this submission.

        Args:
            ray_job_id: Ray's id of the driver, which also names its logs on the cluster.
        """
        try:
            self.record = self._record() | ({"ray_job_id": ray_job_id} if ray_job_id else {})
            self.submission = self._submit(self._wanted)
        except OSError as error:
            raise ConfigError(storage.words(error)) from error

    @staticmethod
    def _refuse_hub_ids(config: RunConfig) -> None:
        """Refuse Hub ids, with the command that downloads them."""
        for field, model in (("base_model", config.base_model), ("rewrite.model", config.rewrite.model)):
            if model:
                refuse_model(field, model)
        for name, patterns in config.files().items():
            for pattern in patterns:
                refuse_dataset(f"{name}.recipe.inputs", pattern)

    def _refuse_base(self) -> None:
        """Refuse a base model that cannot be trained, before gigabytes of it are hashed."""
        config = self.config
        if config.base_model is None:
            return
        directory = storage.Directory(storage.located(config.base_model))
        found = looked_at(directory, config.train.recipe, "base_model", libraries=config.check_packages)
        if isinstance(found, str):
            raise ConfigError(found)

    def _resolve(self) -> dict[str, Inventory]:
        """Find every outside input; the sample's are found when the sample is made."""
        config, found = self.config, {}
        for name, patterns in config.files().items():
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
        if config.base_model:
            found["base_model"] = resolve_model("base_model", storage.located(config.base_model), self.hashes)
        if config.rewrite.model:
            rewriter = storage.located(config.rewrite.model)
            found["rewriter"] = resolve_model("rewrite.model", rewriter, self.hashes)
            if config.rewrite.recipe.layout == "own":
                refuse_untemplated("rewrite.recipe.layout", "rewrite.model", found["rewriter"])
        for setting, scorer in config.curate.scorers().items():
            if scorer.layout == "own" and scorer.rater == "base":
                refuse_untemplated(f"{setting}.layout", "base_model", found.get("base_model"))
        return found

    def _record(self) -> dict[str, Any]:
        """Record the run; return how this submission runs it."""
        inputs = {name: value.identity for name, value in self.inputs.items()}
        what, uri = (
            {**self.config.recipes(), "reuse": self.reuse, "inputs": inputs},
            storage.join(self.root, "run.json"),
        )
        if not storage.create(uri, _json(what)) and (parted := difference(storage.read_json(uri), what)):
            field, old, new = parted
            logger.info(
                "%s: %s was %s, this submission has %s; stages that have started keep the old value", uri, field,
                short(old), short(new),
            )  # fmt: skip
            storage.write_bytes(uri, _json(what))
        config = self.config.model_dump(mode="json")
        return {"config": config, "reuse": self.reuse, "versions": versions(), "started": time.time()}

    def _submit(self, wanted: str | None) -> str:
        """Record this submission under an id that no other submission has."""
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

    @property
    def base(self) -> Model | None:
        """The configured base model; None: the sample's."""
        return self._model(self.config.base_model, "base_model")

    @property
    def rewriter(self) -> Model | None:
        """The model that rewrites the kept responses; None: nothing is rewritten."""
        return self._model(self.config.rewrite.model, "rewriter")

    def _model(self, uri: str | None, name: str) -> Model | None:
        return Model(storage.located(uri), self.inputs[name]) if uri else None

    def at(self, name: str) -> Place:
        """Return the place of a stage in this run, and make it the current stage."""
        check = functools.partial(refuse_read, self.root) if name == self.retrying else None
        self.place = Place(name, storage.join(self.root, name), self.submission, check)
        return self.place

    def state(self) -> str:
        """Say, from storage, how far the current stage is; printed when a submission ends in the middle of it."""
        if self.place is None:
            return "no stage was started"
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
        """Return the manifest of a stage that the configuration reuses from another run; None if it does not.

        Raises:
            ConfigError: that stage is not finished, or is a different stage.
        """
        if name not in self.reuse:
            return None
        manifest = read_manifest(self.reuse[name])
        if manifest is None:
            raise ConfigError(f"reuse.{name}: {self.reuse[name]} is not a finished stage (it has no manifest.json)")
        if manifest.stage != name:
            raise ConfigError(f"reuse.{name}: {self.reuse[name]} is the stage {manifest.stage}, not {name}")
        return manifest

    def finished(self) -> list[Manifest]:
        """Return the manifests of the finished stages, reused ones included, in the order of the run."""
        rounds = len(self.config.curate.recipe.rounds)
        found = [self.reused(name) or read_manifest(storage.join(self.root, name)) for name in stage_names(rounds)]
        return [manifest for manifest in found if manifest]


_RECORD_FILE = re.compile(r"[^./][^/]*\.json")


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def refuse_read(root: str, manifest: Manifest) -> None:
    """Refuse to change a stage of a run once another stage of the run has started to read it.

    Raises:
        ConfigError: other stages read it; the message names them.
    """
    begun = []
    for name in stages_there(root):
        recipe = storage.join(root, name, "recipe.json")
        if storage.exists(recipe) and {"digest": manifest.digest} in storage.read_json(recipe)["inputs"].values():
            begun.append(name)
    if begun:
        raise ConfigError(
            f"{manifest.stage} of {root} was read by {', '.join(begun)}, so it cannot change; to retry its quarantined "
            f"rows, use another root and reuse: the stages before {manifest.stage}"
        )


def stages_there(root: str) -> list[str]:
    """Return the names that stages of a run can have, including its comparisons of scorers."""
    return stage_names(files=(f"compare/{name}" for name in storage.list_names(storage.join(root, "compare"))))


Submission = tuple[storage.Listed, dict[str, Any]]
"""The file and the record of a submission."""


def finished_stages(root: str, submitted: Iterable[Submission] | None = None) -> dict[str, Manifest]:
    """Return the manifests of a run's finished stages by name, in the order of the run; writes nothing.

    Reused stages are found through the manifests of the stages made from them, or through the submissions' `reuse`.
    """
    known = stages_there(root)
    found = {name: manifest for name in known if (manifest := read_manifest(storage.join(root, name)))}
    submitted = submissions(root) if submitted is None else submitted
    for name, uri in reused_stages(root, found.values(), submitted).items():
        if name not in found and (manifest := read_manifest(uri)):
            found[name] = manifest
    return {name: found[name] for name in known if name in found}


def reused_stages(root: str, manifests: Iterable[Manifest], submitted: Iterable[Submission]) -> dict[str, str]:
    """Return the URIs of a run's reused stages: from the manifests made from them, else from the submissions."""
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
    """Return the file and the record of the submission that started last, whatever its name; None, {} if none did."""
    return max(submissions(root), key=_began, default=(None, {}))


def submissions(root: str) -> list[Submission]:
    """Return the latest submissions, at most `MOST_SUBMISSIONS`, in the order in which they started."""
    uri = storage.join(root, "submissions")
    files = [file for file in storage.listing(uri) if _RECORD_FILE.fullmatch(file.name)]
    files = sorted(files, key=lambda file: file.modified)[-MOST_SUBMISSIONS:]
    with ThreadPoolExecutor(READERS) as readers:
        names = [storage.join(uri, file.name) for file in files]
        records = list(readers.map(lambda name: read_as(_checked, storage.read_json(name), name), names))
    return sorted(zip(files, records, strict=True), key=_began)


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """Return a submission's record; raise if it is malformed."""
    check_types(_Record, record)
    return record


class _Record:
    """The fields of a submission's record that are checked where present."""

    started: float
    config: dict[str, Any]
    reuse: dict[str, str]


def _began(submission: Submission) -> tuple[float, float]:
    file, record = submission
    return record.get("started", 0.0), file.modified


MOST_SUBMISSIONS = 16
"""The most recent records that are read; a supervisor may submit a run again every few minutes."""
READERS = 16
"""Number of records read at once."""
