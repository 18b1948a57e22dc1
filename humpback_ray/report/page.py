"""The page: everything of a run that a person should see, in one HTML file that needs nothing else.

It opens without a server or a network, in light and dark, on a phone. Web text is hostile: jinja2 escapes every value,
and a content security policy in the page forbids scripts, images and requests of any kind should an escape be missing.
Long texts are cut, so that the page stays below 2 MB whatever the run.

Given up: sorting, filtering and zooming, which would need scripts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from humpback_ray.miniature.findings import ARMS, RATERS, Findings, interval
from humpback_ray.report import figures, funnel, reading, summary
from humpback_ray.report.canaries import canaries, canary_warnings
from humpback_ray.report.truth import unable, warning
from humpback_ray.sample.measure import measure
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.progress import duration

MOST_BYTES = 2_000_000


def report(manifests: Mapping[str, Manifest], notes: Sequence[str] = ()) -> str:
    """Write the report of a run, finished or not.

    Args:
        manifests: finished stages by name, in the order of the run; a section without its stage says so.
        notes: sentences of the caller's, shown above the summary.

    Returns:
        An HTML document; with the same arguments, the same text.
    """
    found = [rating for number in funnel.rounds(manifests) if (rating := funnel.ratings(manifests, number))]
    models = funnel.model_rows(manifests)
    costs = funnel.timing(manifests)
    truth = measure(manifests)
    watched = canaries(manifests)
    unable_to_rate = [warning(truth.checks)] if truth and unable(truth.checks) else []
    return _template("page.html").render(
        notes=list(notes),
        identity=summary.identity(manifests),
        sentences=summary.sentences(manifests, found, models),
        warnings=unable_to_rate + canary_warnings(watched) + summary.warnings(manifests, found, models, costs),
        funnel=funnel.funnel(manifests),
        lengths=funnel.length_table(manifests),
        ratings=[(rating, figures.histogram(rating)) for rating in found],
        canaries=watched,
        models=[(model, figures.loss_curve(model)) for model in models],
        quarantine=reading.quarantined_to_read(manifests),
        reading=reading.pairs_to_read(manifests, found[-1].points if found else funnel.GRADES),
        answers=reading.answers_to_read(manifests),
        seed=reading.seed_to_read(manifests),
        truth=truth,
        costs=costs,
    )


def findings_page(found: Findings) -> str:
    """Write the page of a miniature: claims, accuracies, raters, over all its seeds."""
    return _template("findings.html").render(found=found, arms=ARMS, raters=RATERS, interval=interval)


def _template(name: str) -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": lambda value: "–" if value is None else f"{value:,}",
        "share": lambda value: "–" if value is None else f"{value:.1%}",
        "decimals": lambda value, digits=2: "–" if value is None else f"{value:,.{digits}f}",
        "rate": lambda value: "–" if value is None else f"{value:.3g}",
        "parameters": parameters,
        "gigabytes": lambda value: "–" if value is None else f"{value / 1e9:.2f} GB",
        "moments": lambda pair: "–" if pair[0] is None else f"{pair[0]:,.0f} ± {pair[1] or 0:,.0f}",
        "duration": lambda value: f"{value:.1f} s" if value < 60 else duration(value),
    }
    return environment.get_template(name)


def parameters(value: int | None) -> str:
    """Write a number of parameters as people say it: 0.41 M, 6.7 B."""
    if value is None:
        return "–"
    return f"{value / 1e9:.3g} B" if value >= 1e9 else f"{value / 1e6:.3g} M"
