"""The page: everything about a run that a person should see, in one self-contained HTML file.

It opens without a server or a network, in light and dark mode, and on a phone. Web text is hostile: jinja2 escapes
every value, and in case an escape is missing, the page's content security policy forbids scripts, images and requests.
Long texts are cut, so the page stays below 2 MB for every run.

Given up: sorting, filtering and zooming, which would need scripts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from humpback_ray import storage
from humpback_ray.report import figures, funnel, reading, summary
from humpback_ray.report.canaries import canaries, canary_warnings
from humpback_ray.report.judges import judgements
from humpback_ray.report.lengths import length_table
from humpback_ray.report.ratings import GRADES, every_rating
from humpback_ray.report.template import template
from humpback_ray.report.training import model_rows
from humpback_ray.stages.manifest import Manifest

MOST_BYTES = 2_000_000


def report(manifests: Mapping[str, Manifest], notes: Sequence[str] = ()) -> str:
    """Write the report of a run, finished or not.

    Args:
        manifests: finished stages by name, in the order of the run; a section without its stage says so.
        notes: the caller's sentences, shown above the summary.

    Returns:
        An HTML document; the same arguments give the same text.
    """
    found = every_rating(manifests)
    models = model_rows(manifests)
    costs = funnel.timing(manifests)
    judged = judgements(manifests)
    watched = canaries(manifests)
    doubts = [warning for found in judged for warning in found.warnings]
    return template(Path(__file__).parent / "page.html").render(
        notes=list(notes),
        identity=summary.identity(manifests),
        sentences=summary.sentences(manifests, found, models),
        warnings=doubts + canary_warnings(watched) + summary.warnings(manifests, found, models, costs),
        funnel=funnel.funnel(manifests),
        lengths=length_table(manifests),
        ratings=[(rating, figures.histogram(rating)) for rating in found],
        canaries=watched,
        models=[(model, figures.loss_curve(model)) for model in models],
        quarantine=reading.quarantined_to_read(manifests),
        reading=reading.pairs_to_read(manifests, found[-1].points if found else GRADES),
        answers=reading.answers_to_read(manifests),
        seed=reading.seed_to_read(manifests),
        judgements=judged,
        costs=costs,
    )


def write_report(root: str, made: Mapping[str, Manifest], out: str | None = None) -> str:
    """Write the report of the finished stages of a run; return its URI.

    Args:
        root: of the run.
        made: its finished stages, by name.
        out: path or URI of the page; None: in the root.
    """
    uri = out or storage.join(root, "report", "index.html")
    storage.write_bytes(uri, report(made).encode())
    return uri
