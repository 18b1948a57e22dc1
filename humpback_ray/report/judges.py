"""What the tables of a run cannot say of themselves: whoever knows what is true of its web registers a judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from humpback_ray.stages.manifest import Manifest


@dataclass(frozen=True)
class Judgement:
    """What a judge found: a section of the page, and what stands elsewhere on it and on the terminal."""

    anchor: str
    label: str
    """In the page's navigation."""
    title: str
    html: str
    """The section below its title, values escaped (see template.py)."""
    sentences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


Judge = Callable[[Mapping[str, Manifest]], Judgement | None]
"""Is given finished stages by name; returns None where it knows nothing of the run."""
_judges: list[Judge] = []


def register(judge: Judge) -> None:
    """Ask a judge about every run that is reported from here on."""
    if judge not in _judges:
        _judges.append(judge)


def judgements(manifests: Mapping[str, Manifest]) -> list[Judgement]:
    """Ask all judges about the finished stages of a run."""
    return [found for judge in _judges if (found := judge(manifests))]


def judged_sentences(manifests: Mapping[str, Manifest]) -> list[str]:
    """Return what the judges say of the finished stages of a run, for a terminal."""
    return [sentence for found in judgements(manifests) for sentence in found.sentences]
