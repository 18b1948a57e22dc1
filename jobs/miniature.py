"""Measure the paper's claims on toy webs with known truth, over several seeds; each runs the pipeline and its controls.

    python -m jobs.miniature configs/demo.yaml root=out/miniature

Draws five new seeds and stores them in the root, so the same command resumes where it was stopped.
"""

import sys

from rich.markdown import Markdown

from humpback_ray import storage
from humpback_ray.config import ConfigError, load
from humpback_ray.graph import Graph
from humpback_ray.miniature import arms as miniature
from humpback_ray.runconfig import RunConfig
from jobs.console import arguments, console, ending, guarded, say, start_ray


def main() -> int:
    """Run every seed and print the tables."""
    found = arguments(None, str(__doc__), seeds="5", arms="all")
    config = load(RunConfig, found.config, found.overrides)
    miniature.check(config)
    graph = Graph(config)
    graph.check_packages(graph.until(None))
    arms = only(found.arms)
    root = storage.located(config.root)
    seeds = miniature.draw_seeds(root, found.seeds)
    ending.state = lambda: miniature.state(root, seeds)
    start_ray(config)
    for _ in miniature.run_seeds(found.config, found.overrides, root, seeds, arms):
        console.print(Markdown(storage.read_bytes(storage.join(root, "findings.md")).decode()))
    say(f"report: {storage.join(root, 'findings.html')}")
    return 0


def only(arms: str) -> list[str] | None:
    """Return the arms named in `seed-only,oracle`; None for all of them."""
    known = [arm.name for arm in miniature.arms(kept=4, steps=1)]
    wanted = [name.strip() for name in arms.strip("[]").split(",") if name.strip()]
    if wanted == ["all"]:
        return None
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"arms names {unknown[0]}, which is not an arm; the arms are {', '.join(known)}")
    return wanted


if __name__ == "__main__":
    sys.exit(guarded(main))
