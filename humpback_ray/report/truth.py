"""On the toy web: what the judge measured of a run, in sentences; the page has the tables."""

from humpback_ray.sample.measure import Measures
from humpback_ray.sample.selfcheck import Check

CANNOT_RATE = 0.7
"""A kind of answer that the base tells from a right one with a lower AUC is reported as one it cannot rate."""


def truth_sentences(found: Measures) -> list[str]:
    """Say what was measured; the worst first to know: whether the base can rate at all."""
    said = []
    if found.checks:
        aucs = ", ".join(f"{check.kind} {check.auc:.2f}" for check in found.checks if check.kind != "right")
        said.append(f"The base model's self-check, AUC of right answers against others: {aucs}.")
        said += [warning(found.checks)] if unable(found.checks) else []
    if found.question_accuracy is not None:
        said.append(f"Of the predicted questions, {found.question_accuracy:.1%} ask for what their segment states.")
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
    """Return the kinds that the base cannot tell from right answers."""
    return [check for check in checks if check.kind != "right" and check.auc < CANNOT_RATE]


def warning(checks: list[Check]) -> str:
    """Say what the base cannot rate."""
    kinds = ", ".join(f"{check.kind} ({check.auc:.2f})" for check in unable(checks))
    return (
        f"This base model cannot tell right answers from {kinds}: its ratings, and those of models made from it, will "
        "keep such pairs."
    )
