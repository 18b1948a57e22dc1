"""Judges: code that knows the truth of a run's web registers here and adds a section to the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from humpback_ray.stages.manifest import Manifest


@dataclass(frozen=True)
class Judgement:
    """A judge's findings: a section of the page, and sentences and warnings for the page and the terminal."""

    anchor: str
    label: str
    """Label in the page's navigation."""
    title: str
    html: str
    """The section below its title, with values escaped (see template.py)."""
    sentences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


Judge = Callable[[Mapping[str, Manifest]], Judgement | None]
"""Takes finished stages by name; returns None if it knows nothing about the run."""
_judges: list[Judge] = []


def register(judge: Judge) -> None:
    """Ask a judge about every run that is reported from now on."""
    if judge not in _judges:
        _judges.append(judge)


def judgements(manifests: Mapping[str, Manifest]) -> list[Judgement]:
    """Ask all judges about the finished stages of a run."""
    return [found for judge in _judges if (found := judge(manifests))]


def judged_sentences(manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the judges' sentences on the finished stages of a run, for a terminal."""
    return [sentence for found in judgements(manifests) for sentence in found.sentences]
