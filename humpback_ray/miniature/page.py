"""The page of a miniature: claims, accuracies and raters over all its seeds."""

from pathlib import Path

from humpback_ray.miniature.findings import ARMS, RATERS, Findings, interval
from humpback_ray.report.template import template


def findings_page(found: Findings) -> str:
    """Write the page."""
    page = template(Path(__file__).parent / "findings.html")
    return page.render(found=found, arms=ARMS, raters=RATERS, interval=interval)
