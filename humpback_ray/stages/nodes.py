"""The nodes of the cluster: which are alive, which is ours, and whether one was lost."""

import time
from typing import Any

NODE_LOSS_S = 20
"""Seconds that Ray may take to notice that a node is lost."""


def node_id() -> str:
    """Return Ray's id of this process's node."""
    import ray

    return ray.get_runtime_context().get_node_id()


def alive() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def alive_nodes() -> set[str]:
    """Return Ray's ids of the nodes that are alive."""
    return {node["NodeID"] for node in alive()}


def nodes_lost(before: set[str]) -> bool:
    """Tell whether one of the nodes is lost; if there were several, give Ray `NODE_LOSS_S` to notice."""
    deadline = time.monotonic() + (NODE_LOSS_S if len(before) > 1 else 0)
    while not (lost := before - alive_nodes()) and time.monotonic() < deadline:
        time.sleep(1)
    return bool(lost)
