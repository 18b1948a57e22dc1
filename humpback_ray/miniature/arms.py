"""The miniature: measure each claim of the paper on toy webs with known truth, over several seeds.

For every seed, a world and a base model are made, and the unmodified pipeline runs on them (`main`). Every arm is one
more run of the same pipeline with a few settings changed. It reuses the stages of `main` that the change does not
affect, so an arm costs a training, some answers, or a rating. All models that are compared are trained for the same
number of steps, from the same base.

    <root>/miniature.json            the seeds, drawn when the root was new
    <root>/<seed>/main  …/<arm>      runs, each complete
    <root>/<seed>/values.json        the judge's measurements of them
    <root>/findings.{json,md,html}   the claims: means, paired differences over seeds, verdicts (findings.py)

Only the oracle's scores use the truth: one arm is trained on the pairs that a perfect rater would keep.
"""

import json
import logging
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from humpback_ray import pipeline, storage
from humpback_ray.config import ConfigError, load
from humpback_ray.graph import stage_names
from humpback_ray.miniature.findings import Values, findings
from humpback_ray.miniature.measure import Measures, RatingQuality, judged_candidates, known_of, measure
from humpback_ray.miniature.page import findings_page
from humpback_ray.miniature.truth import judge
from humpback_ray.records import SCORE
from humpback_ray.report import register, write_report
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage

logger = logging.getLogger(__name__)

SEEDED = ("sample.world.seed", "sample.base.seed", "train.recipe.seed")
"""Settings that a seed sets; sampling from models is seeded by row ids, which depend on the world."""

SPLITS = ("unseen", "pool")
ORACLE = "oracle-scores"


class Arm(NamedTuple):
    """One more run: its differences from `main`."""

    name: str
    own: tuple[str, ...]
    """Stages that the arm makes; it reuses all others from `main`."""
    changes: tuple[str, ...] = ()
    """Overrides, as on a command line."""
    instead: Mapping[str, str] = {}
    """Stage → stage of `main` (or the oracle's) that replaces it."""
    rater: str | None = None
    """Name under which its ratings are reported."""

    @property
    def model(self) -> str:
        """The model that gives the arm's answers."""
        return "m0" if "evaluation/m0" in self.own else "m1"


def arms(kept: int, steps: int) -> list[Arm]:
    """Return the arms beside `main`.

    Args:
        kept: number of pairs that round 1 of `main` kept; the sizes of the other selections are shares of it.
        steps: number of steps for which M_1 was trained.
    """
    trained = ("models/m1", "evaluation/m1")
    selected = ("round-1/curated", "round-1/tokens", *trained)
    rated = ("round-1/scores", "round-1/curated")

    def rule(**values: Any) -> tuple[str, ...]:
        rounds = [{"threshold": None, "min_kept": 0, **values}]
        return (f"curate.recipe.rounds={json.dumps(rounds)}",)

    found = [
        Arm("base", (*rated, "evaluation/m0"), instead={"models/m0": "sample/base"}, rater="rater-base"),
        Arm("rated-by-m2", rated, instead={"models/m0": "models/m2"}, rater="rater-m2"),
        Arm("seed-only", ("models/m0", "evaluation/m0"), (f"train.recipe.steps.m0={steps}",)),
        Arm("untagged", ("tokens/seed", "round-1/tokens", *trained), ("chat.seed_tag=null", "chat.web_tag=null")),
        Arm("asked-seed", trained[1:], ("evaluate.recipe.tags=seed",)),
        Arm("asked-augmented", trained[1:], ("evaluate.recipe.tags=augmented",)),
        Arm("asked-none", trained[1:], ("evaluate.recipe.tags=none",)),
    ]
    if kept:
        oracle = {"round-1/scores": ORACLE}
        found += [
            Arm("augmented-only", trained, ("train.recipe.joint=false",)),
            Arm("uncurated", selected, rule(sample=kept)),
            Arm("oracle", selected, rule(threshold=4.0, sample=kept), instead=oracle),
        ]
    for share, divisor in (("half", 2), ("quarter", 4)):
        if size := kept // divisor:
            found += [
                Arm(f"curated-{share}", selected, rule(threshold=4.0, sample=size)),
                Arm(f"uncurated-{share}", selected, rule(sample=size)),
            ]
    return found


def check(config: RunConfig) -> None:
    """Refuse a configuration whose runs cannot be judged.

    Raises:
        ConfigError: an input does not come from the toy world.
    """
    given = {f"{name}.recipe.inputs": getattr(config, name).recipe.inputs for name in ("seed", "corpus", "evaluate")}
    foreign = [name for name, value in {"base_model": config.base_model, **given}.items() if value]
    if foreign:
        raise ConfigError(
            f"{foreign[0]} is set, but the miniature judges by the truth of the toy web; use configs/demo.yaml as it is"
        )


def draw_seeds(root: str, wanted: str) -> list[int]:
    """Return the seeds of a root: a number of new ones, drawn once and stored, or those listed (`[1, 2]`).

    Raises:
        ConfigError: `wanted` is neither a number nor a list, or the root has other seeds.
    """
    value = json.loads(wanted) if wanted.startswith("[") or wanted.isdigit() else None
    many = value if isinstance(value, int) and value else None
    given = [int(seed) for seed in value] if isinstance(value, list) and value else None
    if many is None and given is None:
        raise ConfigError(f"seeds is {wanted!r}; set a number of seeds to draw, or a list such as [1, 2, 3]")
    uri = storage.join(root, "miniature.json")
    drawn = given or [secrets.randbelow(10**6) for _ in range(many or 0)]
    storage.create(uri, json.dumps({"seeds": drawn}).encode())
    have: list[int] = json.loads(storage.read_bytes(uri))["seeds"]
    if (given and have != given) or (many and len(have) != many):
        raise ConfigError(f"{root} was started with the seeds {have}, not {wanted}; use them or choose another root")
    return have


def run_seeds(
    path: str, overrides: Sequence[str], root: str, seeds: Sequence[int], only: Collection[str] | None = None
) -> Iterator[Values]:
    """Run each seed's unfinished stages and judge them; after each seed, rewrite the findings and yield its values.

    Args:
        path: of the configuration.
        overrides: as on a command line; they apply to every run.
        root: of the miniature.
        seeds: from `draw_seeds`.
        only: names of the arms to run beside `main`; None: all.
    """
    done: dict[int, Values] = {}
    for number, seed in enumerate(seeds, start=1):
        logger.info("seed %d (%d of %d)", seed, number, len(seeds))
        done[seed] = run_seed(path, overrides, storage.join(root, str(seed)), seed, only)
        publish(root, done)
        yield done[seed]


def state(root: str, seeds: Sequence[int]) -> str:
    """Say from storage how far a miniature is."""
    done = sum(storage.exists(storage.join(root, str(seed), "values.json")) for seed in seeds)
    return f"{done} of {len(seeds)} seeds are done; finished stages of the next one stay"


def publish(root: str, values: Mapping[int, Values]) -> None:
    """Write the findings of the seeds so far."""
    found = findings(values)
    for seed, measured_values in values.items():
        storage.write_bytes(
            storage.join(root, str(seed), "values.json"), json.dumps(measured_values, indent=1).encode()
        )
    storage.write_bytes(storage.join(root, "findings.json"), found.json())
    storage.write_bytes(storage.join(root, "findings.md"), found.markdown().encode())
    storage.write_bytes(storage.join(root, "findings.html"), findings_page(found).encode())


def run_seed(path: str, overrides: Sequence[str], root: str, seed: int, only: Collection[str] | None = None) -> Values:
    """Run `main` and every arm of one seed; return the judge's measurements."""
    seeded = [*overrides, *(f"{key}={seed}" for key in SEEDED)]
    main = Run(load(RunConfig, path, [*seeded, f"root={storage.join(root, 'main')}"]))
    made = {manifest.stage: manifest for manifest in pipeline.stages(main)}
    register(judge)
    write_report(main.root, made)
    oracle = oracle_scores(made, storage.join(root, ORACLE))
    places = {name: manifest.uri for name, manifest in (*made.items(), (ORACLE, oracle))}
    values = values_of_main(measured(made))
    first_round = json.dumps([main.config.curate.recipe.rounds[0].model_dump(mode="json")])
    for arm in arms(made["round-1/curated"].kept, made["models/m1"].extra["steps"]):
        if only is not None and arm.name not in only:
            continue
        logger.info("seed %d, arm %s", seed, arm.name)
        sources = {name: arm.instead.get(name, name) for name in stage_names(1) if name not in arm.own}
        reuse = {name: places[source] for name, source in sources.items() if source in places}
        mine = (f"curate.recipe.rounds={first_round}", "curate.recipe.canaries=false", *arm.changes)
        run = Run(
            load(
                RunConfig, path, [*seeded, *mine, f"root={storage.join(root, arm.name)}", f"reuse={json.dumps(reuse)}"]
            )
        )
        values |= values_of_arm(arm, measured({manifest.stage: manifest for manifest in pipeline.stages(run)}))
    return values


def measured(made: Mapping[str, Manifest]) -> Measures:
    """Judge a run on a toy web."""
    found = measure(made)
    assert found, "the run has no sample/web; `check` refuses such configurations"
    return found


def values_of_main(found: Measures) -> Values:
    """Name the measurements of `main`: `m1.test.unseen`, `rater-m0.precision`, `questions`, `check.personal`."""
    values: Values = {"questions": found.question_accuracy}
    for model in found.answers:
        values |= accuracies(model, model, found)
    for number, rater in found.raters.items():
        values |= ratings(f"rater-m{number - 1}", rater)
    assert found.candidates
    total = len(found.candidates.good) + len(found.candidates.others)
    values |= {"candidates": total, "good-candidates": len(found.candidates.good) / total if total else None}
    return values | {f"check.{check.kind}": check.auc for check in found.checks}


def values_of_arm(arm: Arm, found: Measures) -> Values:
    """Name the measurements of an arm."""
    values = accuracies(arm.name, arm.model, found) if f"evaluation/{arm.model}" in arm.own else {}
    return values | ratings(arm.rater, found.raters[1]) if arm.rater else values


def ratings(name: str, found: RatingQuality) -> Values:
    """Return a rater's figures."""
    return {f"{name}.{what}": getattr(found, what) for what in ("precision", "recall", "auc", "failed", "kept")}


def accuracies(name: str, model: str, found: Measures) -> Values:
    """Return a model's share of right answers by part and split, and its share of answers in the assistant's voice."""
    keys = [(part, split) for part in ("test", "dev") for split in SPLITS]
    values: Values = {f"{name}.{part}.{split}": found.accuracy(model, f"toy_{part}_{split}") for part, split in keys}
    answers = found.answers[model].get("toy_test_unseen")
    return {**values, f"{name}.voice": answers.assistant_share if answers else None}


def oracle_scores(made: Mapping[str, Manifest], uri: str) -> Manifest:
    """Rate the candidates of `main` by the truth: 5 for a good one, 1 for any other."""
    candidates = made["candidates"]
    stage = Stage(Place("round-1/scores", uri, "oracle"), {"oracle": 1}, {"candidates": candidates}, SCORE)

    def write(attempt: Attempt) -> Commit:
        found = judged_candidates(candidates, known_of(made["sample/web"]))
        rows = [{"id": id_, "score": 5.0} for id_ in found.good] + [{"id": id_, "score": 1.0} for id_ in found.others]
        writer = TableWriter(attempt, SCORE)
        writer.write(pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema=SCORE))
        return writer.commit()

    return stage.leased(write)
