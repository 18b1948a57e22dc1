"""README is short, links lead somewhere, and paths and settings that pages name are there."""

import re
import typing
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from humpback_ray.config import Config
from humpback_ray.runconfig import RunConfig
from tests.docs import graph
from tests.docs.pages import PAGES, REPOSITORY, anchors, broken_links, spans

FOLDERS = "humpback_ray|jobs|tests|configs|cluster|docs|examples"
SECTIONS = "|".join(name for name, field in RunConfig.model_fields.items() if field.annotation not in (str, bool))


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "cluster/README.md", "docs/gpu.md", "examples/outputs.md"} <= PAGES.keys()


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(PAGES["README.md"].read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    assert not list(broken_links(PAGES[name].read_text(), PAGES[name]))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("see [there](docs/none.md)", "docs/none.md: no such file in the repository"),
        ("see [there](docs/gpu.md#no-heading)", "docs/gpu.md#no-heading: gpu.md has no such heading"),
        ("# One\n[up](#two)", "#two: README.md has no such heading"),
        ("![alt\ntext](none.svg)", "none.svg: no such file in the repository"),
        ('<img src="none.png">', "none.png: no such file in the repository"),
        ("[a][b]\n\n[b]: none.md", "none.md: no such file in the repository"),
        ("[outside](../../../etc/hostname)", "../../../etc/hostname: no such file in the repository"),
        ("[ok](docs/gpu.md#reading-the-lines) [ok](https://example.org/none.md) `[no](link.md)`", None),
        ("```\n[no](link.md)\n```\n# A `b` – c!\n[ok](#a-b--c)", None),
    ],
)
def test_a_broken_link_is_found(text: str, problem: str | None) -> None:
    assert list(broken_links(text, REPOSITORY / "README.md")) == ([problem] if problem else [])


def test_headings_of_the_same_words_have_names_of_their_own() -> None:
    assert anchors("# Run\n## Run\n```\n# no heading\n```\n") == {"run", "run-1"}


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_a_page_names_is_there(name: str) -> None:
    named = {span for span in spans(PAGES[name].read_text()) if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]*", span)}
    assert not [path for path in named if not (REPOSITORY / path).exists()]


@pytest.mark.parametrize("name", PAGES)
def test_every_setting_that_a_page_names_is_there(name: str) -> None:
    named = {re.split("[=:]", span)[0] for span in spans(PAGES[name].read_text())}
    dotted = {key for key in named if re.fullmatch(rf"(?:{SECTIONS})\.(?!py$|json$)[a-z_.]+", key)}
    assert not [key for key in dotted if not is_setting(RunConfig, key.split("."))]


def test_a_setting_that_is_not_there_is_found() -> None:
    assert is_setting(RunConfig, ["curate", "recipe", "scorer", "rater"])
    assert is_setting(RunConfig, ["train", "recipe", "steps", "m1"])
    assert not is_setting(RunConfig, ["train", "recipe", "worker"])
    assert not is_setting(RunConfig, ["train", "placement", "workers", "most"])


def is_setting(annotation: Any, path: list[str]) -> bool:
    """Whether a dotted path leads through fields of configurations, whichever member of a union has them."""
    if not path:
        return True
    if isinstance(annotation, type) and issubclass(annotation, Config):
        field = annotation.model_fields.get(path[0])
        return field is not None and is_setting(field.annotation, path[1:])
    if typing.get_origin(annotation) is dict:
        return is_setting(typing.get_args(annotation)[1], path[1:])
    return any(is_setting(member, path) for member in typing.get_args(annotation))


def test_the_graph_in_the_architecture_page_is_the_codes() -> None:
    page = graph.PAGE.read_text()
    assert graph.current(page) == page, "run `python -m tests.docs.graph`"


def test_another_graph_is_seen_and_a_page_without_marks_refused() -> None:
    page = graph.PAGE.read_text()
    changed = page.replace("seed ==> tokens_seed", "seed --> tokens_seed")
    assert changed != page
    assert graph.current(changed) == page
    with pytest.raises(ValueError, match="once each"):
        graph.current("# no marks")


def test_the_picture_is_whole_in_light_and_dark_and_fetches_nothing() -> None:
    source = (REPOSITORY / "docs/flow.svg").read_text()
    picture = ElementTree.fromstring(source)
    assert picture.find("{http://www.w3.org/2000/svg}title") is not None
    light, dark = source.split("@media (prefers-color-scheme: dark)")
    used = set(" ".join(re.findall(r'class="([^"]+)"', source)).split())
    assert used <= set(re.findall(r"\.([a-z]+) \{", light))
    colored = set(re.findall(r"\.([a-z]+) \{[^}]*#", light))
    assert colored == set(re.findall(r"\.([a-z]+) \{[^}]*#", dark.split("</style>")[0])) | (colored - used)
    assert not re.search(r"(?:href|src)=|url\((?!#)", source)
