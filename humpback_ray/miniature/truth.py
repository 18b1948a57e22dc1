"""The judge's measurements of a run on the toy web, as sentences and as a section of the report."""

from collections.abc import Mapping
from pathlib import Path

from humpback_ray.miniature.measure import Measures, measure
from humpback_ray.report.judges import Judgement
from humpback_ray.report.template import template
from humpback_ray.sample.selfcheck import Check
from humpback_ray.stages.manifest import Manifest

CANNOT_RATE = 0.7
"""If the AUC of a kind of answer is lower, report that the base cannot rate it."""


def judge(manifests: Mapping[str, Manifest]) -> Judgement | None:
    """Judge a run on the toy web for its report (report/judges.py); None for a run on another web."""
    truth = measure(manifests)
    if truth is None:
        return None
    html = template(Path(__file__).parent / "truth.html").render(truth=truth)
    doubts = [warning(truth.checks)] if unable(truth.checks) else []
    return Judgement("truth", "Truth", "Compared with the truth", html, truth_sentences(truth), doubts)


def truth_sentences(found: Measures) -> list[str]:
    """Describe the measurements, starting with whether the base can rate at all."""
    said = []
    if found.checks:
        aucs = ", ".join(f"{check.kind} {check.auc:.2f}" for check in found.checks if check.kind != "right")
        said.append(f"The base model's self-check, AUC of right answers against others: {aucs}.")
        said += [warning(found.checks)] if unable(found.checks) else []
    if found.question_accuracy is not None:
        said.append(f"{found.question_accuracy:.1%} of the predicted questions ask for their segment's fact.")
    for number, rater in found.raters.items():
        figures = {"precision": rater.precision, "recall": rater.recall, "AUC": rater.auc}
        words = ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if value is not None)
        said.append(f"Round {number}, rated by m{number - 1}: {words or 'nothing to measure'}, {rater.failed} failed.")
    for dataset in sorted({name for datasets in found.answers.values() for name in datasets}):
        shares = ((model, found.accuracy(model, dataset)) for model in found.answers)
        words = ", ".join(f"{model} {value:.1%}" for model, value in shares if value is not None)
        said.append(f"Right answers to {dataset}: {words}.")
    return said


def unable(checks: list[Check]) -> list[Check]:
    """Return the kinds of answers that the base cannot tell from right ones."""
    return [check for check in checks if check.kind != "right" and check.auc < CANNOT_RATE]


def warning(checks: list[Check]) -> str:
    """Name the kinds of answers that the base cannot rate."""
    kinds = ", ".join(f"{check.kind} ({check.auc:.2f})" for check in unable(checks))
    return (
        f"This base model cannot tell right answers from {kinds}: its ratings, and those of models made from it, will "
        "keep such pairs."
    )
