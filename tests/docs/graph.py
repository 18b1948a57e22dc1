"""The stage graph of a configuration as a Mermaid flowchart, drawn from `humpback_ray.graph.Graph` itself.

    python -m tests.docs.graph        write it between the marks in docs/architecture.md

`test_graph.py` fails while the page shows another graph than the code has.
"""

import re
from pathlib import Path

from humpback_ray.config import load
from humpback_ray.graph import Graph, Node
from humpback_ray.placement import PoolPlacement, TrainPlacement
from humpback_ray.runconfig import RunConfig

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/architecture.md"
CONFIG = REPOSITORY / "configs/demo.yaml"
BEGIN, END = "<!-- graph: python -m tests.docs.graph writes it -->", "<!-- /graph -->"
COLORS = {"task": "#6b7a90", "pool": "#2e8b57", "training": "#d2691e"}
"""Outlines, which show on a light and on a dark page."""


def drawn(graph: Graph) -> str:
    """Draw the graph: tables are boxes, models rounded, files slanted; an edge that ids follow is thick."""
    lines = ["flowchart TD"]
    lines += [f"    {_shape(node)}:::{_where(graph, node)}" for node in graph]
    lines += [f"    {_key(read)} {'==>' if read == node.ids_of else '-->'} {_key(node.name)}"
              for node in graph for read in node.reads]  # fmt: skip
    lines += [f"    classDef {where} stroke:{color},stroke-width:2px" for where, color in COLORS.items()]
    return "\n".join(lines)


def _key(stage: str) -> str:
    return re.sub(r"\W", "_", stage)


def _shape(node: Node) -> str:
    start, end = {"model": ("([", "])"), "files": ("[/", "/]")}.get(str(node.kind.writes), ("[", "]"))
    return f'{_key(node.name)}{start}"{node.name}"{end}'


def _where(graph: Graph, node: Node) -> str:
    placement = graph.placement(node.name)
    if isinstance(placement, TrainPlacement):
        return "training"
    return "pool" if isinstance(placement, PoolPlacement) else "task"


def current(page: str) -> str:
    """Return the page with the graph that the code has now.

    Raises:
        ValueError: the page does not hold both marks once.
    """
    if (page.count(BEGIN), page.count(END)) != (1, 1):
        raise ValueError(f"{PAGE.name} must hold {BEGIN} and {END} once each")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n```mermaid\n{drawn(Graph(load(RunConfig, CONFIG)))}\n```\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text()))
