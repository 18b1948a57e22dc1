"""Self-curation, once per round: rate the candidates, keep the best.

The candidates are the same in every round; the rater changes (unless it is always the base model), and the selection
rule may (Li et al. 2023, arXiv:2308.06259, section 2.3). Too many failed ratings or too few kept pairs stop the run
here, before training requests GPUs.
"""

from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from humpback_ray.config import Config
from humpback_ray.curate.compare import CompareRecipe
from humpback_ray.curate.score import FAILED, Rater, ScoreRecipe
from humpback_ray.curate.scorers import Chained, SingleScorer
from humpback_ray.curate.select import (
    SelectRecipe,
    check_threshold,
    counts_by_rule,
    curate,
    passing,
    require_kept,
    select,
)
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import PAIR, SCORE
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.enough import refuse_failures, refuse_share
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage


class CurateRecipe(ScoreRecipe):
    """How pairs are rated, and which of them each round keeps."""

    rounds: tuple[SelectRecipe, ...] = Field(default=(SelectRecipe(), SelectRecipe()), min_length=1, max_length=9)
    """One rule per round; the paper runs two rounds."""

    canaries: bool = True
    """Each round's model also rates about 500 bad pairs (`canaries.py`); half contain a text that asks for a high
    grade. They change no score, and nothing is trained on them. Not hashed."""

    @model_validator(mode="after")
    def _thresholds_can_be_reached(self) -> Self:
        for number, rule in enumerate(self.rounds, start=1):
            check_threshold(rule, self.scorer, number)
        return self


class CurateConfig(Config):
    """Rating and selection: the stages of scores, prescores, canaries and curated pairs, and `--compare`."""

    recipe: CurateRecipe = Field(default_factory=CurateRecipe)
    placement: PoolPlacement = PoolPlacement()
    select_placement: TaskPlacement = TaskPlacement()
    compare: CompareRecipe = CompareRecipe()
    """Settings of `--compare`; no stage of the run depends on them."""

    def scorers(self) -> dict[str, SingleScorer]:
        """Return the scorers of rounds and of comparisons, by their keys in the configuration."""
        scorer, key = self.recipe.scorer, "curate.recipe.scorer"
        compared = {f"curate.compare.scorers.{name}": one for name, one in self.compare.scorers.items()}
        if isinstance(scorer, Chained):
            return compared | {f"{key}.first": scorer.first, f"{key}.then": scorer.then}
        return compared | {key: scorer}

    def scored_by(self, scorer: SingleScorer, **changes: object) -> Self:
        """Return this configuration with another scorer."""
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"scorer": scorer, **changes})})

    def lenient(self) -> Self:
        """Return this configuration for ratings that select nothing: canaries, the check of the sample's base model.

        Of a chain, only the last scorer is used, on all pairs. Failed ratings do not stop the run.
        """
        scorer = self.recipe.scorer
        return self.scored_by(scorer.then if isinstance(scorer, Chained) else scorer, max_failed_share=1.0)


def make_scores(
    config: CurateConfig,
    chat: ChatRecipe,
    candidates: Manifest,
    rater: Model,
    place: Place,
    prescores: Manifest | None = None,
) -> Manifest:
    """Rate every candidate.

    Args:
        config: how and where.
        chat: the layout.
        candidates: a stage with the schema CANDIDATE.
        rater: the rating model.
        place: of the stage.
        prescores: the candidates' scores by the first scorer of a chain; None without a chain.

    Raises:
        StageFailed: a larger share of ratings or samples failed than `max_failed_share`; the scores stay, and a run
            with a higher limit resumes from them.
    """
    recipe = config.recipe.model_dump(mode="json", exclude={"rounds", "canaries", "max_failed_share"})
    identity = {"score": recipe, "chat": chat.model_dump(mode="json")}
    inputs = {candidates.stage.rpartition("/")[2]: candidates, "rater": rater.source}
    stage = Stage(place, identity, inputs | ({"prescores": prescores} if prescores else {}), SCORE)
    arguments = (config.recipe, chat, rater.directory, rater.digest, prescores.uri if prescores else None)
    scores = stage.run(Rater, arguments, config.placement, candidates)
    most = config.recipe.max_failed_share
    refuse_failures(scores, FAILED, most, "curate.recipe.max_failed_share")
    samples, failed = count_samples(scores)
    what = "samples had no score after the retry"
    refuse_share(scores, failed, samples, what, most, "curate.recipe.max_failed_share")
    return scores


def make_prescores(
    config: CurateConfig, chat: ChatRecipe, candidates: Manifest, rater: Model, place: Place
) -> Manifest:
    """Rate every candidate with the cheap scorer of a chain; otherwise like `make_scores`."""
    scorer = config.recipe.scorer
    assert isinstance(scorer, Chained), "only a chain has a cheap scorer"
    return make_scores(config.scored_by(scorer.first), chat, candidates, rater, place)


def count_samples(scores: Manifest) -> tuple[int, int]:
    """Return the number of samples of a finished rating, and of those without a score after the retry."""
    samples = failed = 0
    for table in scores.tables(["samples"], kept=False):
        drawn = pc.call_function("list_flatten", [table["samples"]])
        samples, failed = samples + len(drawn), failed + drawn.null_count
    return samples, failed


def make_curated(config: CurateConfig, number: int, candidates: Manifest, scores: Manifest, place: Place) -> Manifest:
    """Keep the best-rated candidates of a round as training pairs, by the round's rule.

    Raises:
        TooFewKept: fewer than the rule's `min_kept` are left; nothing is published.
    """
    rule = config.recipe.rounds[number - 1]
    identity = rule.model_dump(mode="json", exclude={"min_kept"})
    stage = Stage(place, identity, {"candidates": candidates, "scores": scores}, PAIR, ids_of="candidates")
    return stage.once(keep, (candidates, scores, rule), config.select_placement)


def keep(attempt: Attempt, candidates: Manifest, scores: Manifest, rule: SelectRecipe) -> Commit:
    """Decide which candidates to keep, and write all of them, each dropped one with its reason.

    Rules may also look at instructions and URLs. The commit's `rules` count the rows that each rule dropped and passed.
    """
    columns = ["id", "score", "drop_reason"]
    rated = pa.concat_tables([SCORE.empty_table().select(columns), *scores.tables(columns, kept=False)])
    ratings = {row["id"]: row for row in rated.to_pylist()}
    found = {i: row["score"] for i, row in ratings.items()}
    fates = select(found, rule, *(_told(candidates, set(passing(found, rule))) if rule.compares else ()))
    kept = sum(reason is None for reason in fates.values())
    require_kept(kept, rated["score"].length() - rated["score"].null_count, rule, attempt.ledger.uri)
    writer = TableWriter(attempt, PAIR)
    for table in candidates.tables():
        writer.write(curate(table, ratings, fates))
    return writer.commit({"rules": counts_by_rule(fates)})


def _told(candidates: Manifest, ids: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read the instructions and the URLs of some candidates, by id."""
    instructions, urls = {}, {}
    for table in candidates.tables(["id", "instruction", "url"]):
        for i, instruction, url in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if i in ids:
                instructions[i], urls[i] = instruction, url or ""
    return instructions, urls
