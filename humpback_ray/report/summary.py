"""The run in a few sentences, and warnings that follow from its figures.

Every warning states the figures of this run that it follows from; there are no warnings on suspicion.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from humpback_ray.inputs.contamination import CONTAMINATED
from humpback_ray.report.funnel import Manifests, TimingRow
from humpback_ray.report.ratings import Ratings, every_rating
from humpback_ray.report.training import ModelRow
from humpback_ray.stages.progress import duration

DEMO_PARAMETERS = 50_000_000
"""A model below this size has never written useful text about real pages."""
FAILED_SHARE = 0.05
KEPT_SHARE = 0.9
CHECKED = ("seed", "candidates")
"""Stages that drop rows which contain an evaluation prompt."""
USUAL = ("seed", "segments", "corpus", "models/backward", "models/m0", "candidates")


def sentences(manifests: Manifests, found: Sequence[Ratings], models: Sequence[ModelRow]) -> list[str]:
    """Describe what happened, stage by stage, with numbers."""
    said = []
    if seed := manifests.get("seed"):
        said.append(f"{seed.kept:,} human-written pairs are the seed.")
    if segments := manifests.get("segments"):
        said.append(f"{segments.kept:,} of {segments.rows:,} web segments passed the filters.")
    if corpus := manifests.get("corpus"):
        said.append(f"{corpus.kept:,} of them remained after duplicates were removed." if "segments" in manifests
                    else f"The corpus holds {corpus.kept:,} segments.")  # fmt: skip
    if candidates := manifests.get("candidates"):
        said.append(
            f"The backward model predicted a usable instruction for {candidates.kept:,} of {candidates.rows:,} "
            "segments."
        )
    if counts := [(name, manifests[name].drops.get(CONTAMINATED, 0)) for name in CHECKED if name in manifests]:
        rows = " and ".join(f"{count:,} rows of {name}" for name, count in counts)
        said.append(f"{rows} contain an evaluation prompt and were dropped ({CONTAMINATED}).")
    for rating in found:
        said += [_round_sentence(rating), failure_sentence(rating)]
    for model in models:
        if model.model not in ("base", "backward") and model.examples is not None:
            said.append(f"{model.model} was trained on {model.examples:,} examples in {model.steps:,} steps.")
    return said


def _round_sentence(rating: Ratings) -> str:
    said = f"Round {rating.round} rated {rating.rated:,} of {rating.pairs:,} pairs"
    if rating.mean is not None:
        said += f", {rating.mean:.2f} on average"
    if rating.kept is not None:
        start = f" from a score of {rating.threshold:g}" if rating.threshold is not None else ""
        said += f", and kept {rating.kept:,}{start}"
    return said + "."


def failure_sentences(manifests: Manifests) -> list[str]:
    """Say how many ratings of each round failed before and after the retry."""
    return [failure_sentence(found) for found in every_rating(manifests)]


def failure_sentence(rating: Ratings) -> str:
    """Say how many replies of a round gave no score, before and after the retry, and how many pairs stayed unrated."""
    unrated = rating.pairs - rating.rated
    over = f"; {rating.passed_over:,} more were not passed on by the cheap scorer" if rating.passed_over else ""
    return (
        f"In round {rating.round}, {rating.failed_first:,} of {rating.replies:,} replies had no score, "
        f"{rating.failed_last:,} after the retry; {unrated:,} of {rating.pairs:,} pairs stayed "
        f"unrated{over} ({rating.failed_samples_share:.1%} of the samples have no score)."
    )


def warnings(
    manifests: Manifests, found: Sequence[Ratings], models: Sequence[ModelRow], costs: Sequence[TimingRow]
) -> list[str]:
    """Return warnings to read before trusting the rest."""
    said = _size_warnings(models) + [warning for rating in found for warning in _rating_warnings(rating)]
    said += [warning for model in models for warning in _loss_warnings(model)]
    lost = {name: manifest.quarantined for name, manifest in manifests.items() if manifest.quarantined}
    said += [f"{name}: {count:,} rows are in quarantine; each failed twice." for name, count in lost.items()]
    retried = [cost for cost in costs if cost.attempts > cost.shards]
    said += [
        f"{c.stage} needed {c.attempts} attempts for {c.shards} shards; some died or were stopped." for c in retried
    ]
    if missing := [name for name in USUAL if name not in manifests]:
        said.append(f"This is part of a run; these stages are not finished: {', '.join(missing)}.")
    mixed = mixed_versions(manifests)
    said += [f"This run mixes versions of {name}: {', '.join(found)}." for name, found in mixed.items()]
    return said


def _size_warnings(models: Sequence[ModelRow]) -> list[str]:
    sizes = [model.parameters for model in models if model.parameters]
    if not sizes or max(sizes) >= DEMO_PARAMETERS:
        return []
    return [
        f"The base model has demo size ({max(sizes) / 1e6:.2g} million parameters). It has seen only the toy web: on "
        "real pages its instructions, ratings and answers are nonsense. This run shows that the machinery works, "
        "not that the method does."
    ]


def _rating_warnings(rating: Ratings) -> list[str]:
    said = []
    if rating.failed_share > FAILED_SHARE:
        reasons = ", ".join(f"{drop.reason} {drop.rows:,}" for drop in rating.failed)
        failed = rating.pairs - rating.rated
        said.append(
            f"Round {rating.round}: {rating.failed_share:.1%} of the ratings failed ({failed:,} of {rating.pairs:,}: "
            f"{reasons}). Failures are not filtering: those pairs were never judged."
        )
    if rating.failed_samples_share > FAILED_SHARE:
        said.append(
            f"Round {rating.round}: {rating.failed_samples_share:.1%} of the samples had no score after the retry "
            f"({rating.failed_last:,} of {rating.replies:,}); read what the judge writes instead."
        )
    if rating.rated > 1 and rating.lowest == rating.highest:
        said.append(f"Round {rating.round}: every score is {rating.lowest:g}; the judge does not tell pairs apart.")
    elif rating.rated and not rating.whole[-1]:
        best = rating.points[-1]
        said.append(f"Round {rating.round}: no pair was rated {best}; the highest score is {rating.highest:.2f}.")
    if rating.kept == 0:
        said.append(f"Round {rating.round} kept nothing.")
    elif rating.kept and rating.rated and rating.kept / rating.rated > KEPT_SHARE:
        share = rating.kept / rating.rated
        said.append(f"Round {rating.round} kept {share:.0%} of the pairs that it rated; that is hardly a selection.")
    return said


def _loss_warnings(model: ModelRow) -> list[str]:
    if any(loss != loss for _, loss in model.losses):
        return [f"{model.model}: the loss became NaN."]
    first, last = model.first_loss, model.last_loss
    if first is not None and last is not None and len(model.losses) > 1 and last >= first:
        return [f"{model.model}: the loss did not fall ({first:.3f} at the start, {last:.3f} at the end)."]
    return []


def mixed_versions(manifests: Manifests) -> dict[str, list[str]]:
    """Return the libraries that took part in the run in several versions."""
    return {name: found for name, found in versions(manifests).items() if len(found) > 1}


def versions(manifests: Manifests) -> dict[str, list[str]]:
    """Return every library's versions, as recorded in the commits."""
    found: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for commit in manifest.commits:
            for name, version in commit.versions.items():
                found.setdefault(name, set()).add(version)
    return {name: sorted(values) for name, values in found.items()}


def identity(manifests: Manifests) -> dict[str, Any]:
    """Return the identity of the run: times, nodes, submissions, versions, fingerprints."""
    commits = [commit for manifest in manifests.values() for commit in manifest.commits]
    nodes = Counter(commit.node for commit in commits if commit.node)
    submissions = {commit.submission for commit in commits if commit.submission}
    started = min((manifest.started for manifest in manifests.values()), default=0.0)
    ended = max((manifest.ended for manifest in manifests.values()), default=0.0)
    return {
        "started": when(started),
        "ended": when(ended),
        "took": duration(ended - started),
        "nodes": nodes.most_common(12),
        "node_count": len(nodes),
        "submissions": len(submissions),
        "versions": {name: ", ".join(found) for name, found in versions(manifests).items()},
        "prints": {name: manifest.fingerprint[:12] for name, manifest in manifests.items()},
    }


def when(seconds: float) -> str:
    """Format a Unix time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
