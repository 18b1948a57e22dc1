"""A pilot: a small part of a run, end to end, in its own root, to measure the rates that `jobs.plan` would assume.

It is a separate run (`<root>-pilot`) with a share of the corpus, chosen by hash, and a few steps of each training. It
has no limit on failures, because models that learned next to nothing cannot rate. Its rates are real; its shares of
kept pairs and its models are not, and nothing reads them.
"""

from humpback_ray.config import ConfigError
from humpback_ray.graph import Graph, models
from humpback_ray.runconfig import RunConfig, pilot_root

STEPS = 12
"""Steps of each training: two to warm up, ten to measure."""


def as_pilot(config: RunConfig) -> RunConfig:
    """Return the configuration of a run's pilot.

    Raises:
        ConfigError: its corpus or a stage made from it is reused from another run.
    """
    taken = sorted(set(config.reuse) & {"segments", "corpus", "candidates"})
    if taken:
        raise ConfigError(
            f"pilot takes a share of the corpus's files, but reuse.{taken[0]} is a finished stage; remove it from reuse"
        )
    steps = {name: STEPS for name, node in models(Graph(config).nodes).items() if node.kind.section == "train"}
    rounds = tuple(rule.model_copy(update={"min_kept": 0}) for rule in config.curate.recipe.rounds)
    lenient = {"max_failed_share": 1.0}
    recipes = {
        "train": {"steps": steps, "joint": True}, "augment": lenient, "rewrite": lenient,
        "curate": {**lenient, "rounds": rounds}, "corpus": {"min_kept": min(config.corpus.recipe.min_kept, 1)},
    }  # fmt: skip
    sections = {}
    for name, changes in recipes.items():
        section = getattr(config, name)
        sections[name] = section.model_copy(update={"recipe": section.recipe.model_copy(update=changes)})
    return config.model_copy(update={"root": pilot_root(config.root), **sections})
