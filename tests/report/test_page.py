"""The page has every section, needs nothing from outside, stays small, and no text in it can execute."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from humpback_ray.report import report
from humpback_ray.report.page import MOST_BYTES
from humpback_ray.stages.manifest import Manifest
from tests.report.conftest import MadeRun

SECTIONS = ["funnel", "lengths", "scores", "training", "reading", "answers", "time", "identity"]
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><a href=javascript:alert(3)>{{ 7 * 7 }}</p></div>"


class Page(HTMLParser):
    """Collects the elements and attributes of a page, and checks that elements nest."""

    VOID = frozenset({"meta", "line", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


def assert_inert(page: Page) -> None:
    assert not {"script", "img", "iframe", "object", "embed", "form", "input", "link", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in page.values("href"))
    assert not page.values("src")


def test_a_finished_run_has_every_section_and_nothing_from_outside(finished: dict[str, Manifest]) -> None:
    html = report(finished)
    page = Page(html)
    assert_inert(page)
    assert [name for name in page.values("id") if name in SECTIONS] == SECTIONS
    assert "default-src 'none'" in page.values("content")[0]
    assert "http://" not in html
    for words in ("0.41 M", "below_threshold", "1,072 ± 818", "Round 2", "nats per output token", "Prompt", "9e-06"):
        assert words in html
    assert page.tags.count("svg") == 2 + 4


def test_the_same_run_gives_the_same_page(finished: dict[str, Manifest]) -> None:
    assert report(finished) == report(finished)


def test_hostile_text_in_every_column_is_inert(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, count=30, wrap=lambda text: ATTACK + text)
    html = report(made.build(), notes=[ATTACK])
    assert_inert(Page(html))
    assert "&lt;script&gt;" in html
    assert "{{ 7 * 7 }}" in html, "not evaluated"


def test_hostile_names_of_reasons_nodes_and_stages_are_inert(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, count=20)
    manifests = made.build(rounds=1)
    for name, manifest in list(manifests.items()):
        commits = []
        for commit in manifest.commits:
            drops = {ATTACK + reason: count for reason, count in commit.drops.items()}
            commits.append(replace(commit, drops=drops, node=ATTACK, submission=ATTACK, versions={ATTACK: ATTACK}))
        manifests[name] = replace(manifest, commits=tuple(commits), fingerprint=ATTACK)
    manifests["models/" + ATTACK] = manifests["models/m0"]
    manifests["evaluation/" + ATTACK] = manifests["evaluation/m0"]
    assert_inert(Page(report(manifests)))


def test_the_page_stays_small_whatever_the_texts(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, count=60, wrap=lambda text: text + "&" * 50_000)
    assert len(report(made.build()).encode()) < MOST_BYTES


@pytest.mark.parametrize("stages", [0, 1, 3, 6, 7])
def test_a_run_in_progress_has_a_page_whose_empty_sections_say_so(finished: dict[str, Manifest], stages: int) -> None:
    part = dict(list(finished.items())[:stages])
    html = report(part, notes=["Stopped by hand."])
    assert [name for name in Page(html).values("id") if name in SECTIONS] == SECTIONS
    assert "This is part of a run" in html or stages >= 6
    assert "No model has answered prompts yet." in html
    assert "Stopped by hand." in html
