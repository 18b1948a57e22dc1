"""Rate every candidate and keep the best, round by round; bring `<root>/round-*/curated` up to date.

With a `rewrite.model`, bring `<root>/round-*/rewritten` up to date too.

    python -m jobs.curate configs/demo.yaml                 all rounds (training the models between them)
    python -m jobs.curate configs/demo.yaml round=1         the first round alone
    python -m jobs.curate configs/demo.yaml --compare       no round: several scorers rate one sample
    python -m jobs.curate configs/demo.yaml --compare round=2 curate.compare.size=200

A comparison uses the rater of one round (the first by default) and the scorers of `curate.compare`. It is printed and
saved as `<root>/report/comparison-<round>.json`. Safe to submit again after a crash.
"""

import argparse
import sys

from humpback_ray.config import ConfigError, load
from humpback_ray.curate.compare import Comparison
from humpback_ray.graph import kept
from humpback_ray.miniature.measure import measure
from humpback_ray.operate.compare import compare_scorers
from humpback_ray.runconfig import RunConfig
from jobs.console import Table, arguments, console, guarded, opened, say, shown, work_until

FLAGS = {"compare": "rate one sample with several scorers and print agreement, failures and cost"}


def main() -> int:
    """Rate and select, or compare scorers."""
    found = arguments(None, str(__doc__), FLAGS, round="")
    return guarded(lambda: compare(found) if found.compare else work_until(found, last_stage))


def last_stage(found: argparse.Namespace, config: RunConfig) -> str:
    """Return the last stage to make."""
    return kept(config).format(t=found.round or len(config.curate.recipe.rounds))


def compare(found: argparse.Namespace) -> int:
    """Bring the candidates and a round's rater up to date, then compare the scorers."""
    config = load(RunConfig, found.config, found.overrides)
    rounds = len(config.curate.recipe.rounds)
    if found.round and found.round not in map(str, range(1, rounds + 1)):
        raise ConfigError(f"round is {found.round!r}; this run has rounds 1 to {rounds}")
    number = int(found.round or 1)
    until = "candidates" if number == 1 else f"models/m{number - 1}"
    run = opened(config, until, also=["compare/sample"])
    made = {manifest.stage: manifest for manifest in shown(run, until)}
    truth = measure(made)
    good = truth.candidates.good if truth and truth.candidates else None
    comparison, uri = compare_scorers(run, made, number, good)
    table(comparison)
    say(f"comparison: {uri}")
    return 0


def table(found: Comparison) -> None:
    """Print a line per scorer, and how far each two of them agree."""
    known = any(one.auc is not None for one in found.scorers)
    pairs = found.scorers[0].pairs
    costs = Table(
        "scorer", "unrated", "replies", "failed", "after retry", "tokens read", "written", "actor s",
        *(["AUC", "Spearman, truth"] if known else []),
        title=f"{pairs:,} candidates, rated as in round {found.round}; costs per 1,000 pairs",
    )  # fmt: skip
    for column in costs.columns[1:]:
        column.justify = "right"
    for one in found.scorers:
        cost = [one.per_1000(value) for value in (one.prompt_tokens, one.completion_tokens, one.actor_s)]
        costs.add_row(
            one.name, f"{one.pairs - one.rated:,}", f"{one.replies:,}", f"{one.failed_first:,}", f"{one.failed_last:,}",
            f"{cost[0]:,.0f}", f"{cost[1]:,.0f}", f"{cost[2]:,.1f}",
            *([number(one.auc), number(one.truth)] if known else []),
        )  # fmt: skip
    console.print(costs)
    names = [one.name for one in found.scorers]
    agree = Table("", *names, title=f"Spearman; overlap of the {found.kept:,} best of each")
    for name, rhos, shares in zip(names, found.spearman, found.overlap, strict=True):
        agree.add_row(name, *(f"{number(r)}; {number(s)}" for r, s in zip(rhos, shares, strict=True)))
    console.print(agree)


def number(value: float | None) -> str:
    """Format a figure; "–" for None."""
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
