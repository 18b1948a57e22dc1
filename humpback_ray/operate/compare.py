"""Compare the scorers of a configuration: each rates the same sample of a run's candidates."""

import json
from collections.abc import Collection, Mapping

from humpback_ray import storage
from humpback_ray.curate.compare import Comparison, compare, make_sample
from humpback_ray.curate.rounds import make_scores
from humpback_ray.run import Run
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model


def compare_scorers(
    run: Run, made: Mapping[str, Manifest], round_number: int, good: Collection[str] | None = None
) -> tuple[Comparison, str]:
    """Rate one sample of the candidates with every scorer of `curate.compare`.

    Args:
        run: the run.
        made: its stages up to the previous round's model, by name.
        round_number: the round whose rater is used.
        good: ids of the candidates that deserve a good rating, if known.

    Returns:
        The comparison, and the URI of the JSON file that holds it.
    """
    config, candidates = run.config.curate, made["candidates"]
    raters = {
        "previous": Model.of(made[f"models/m{round_number - 1}"]),
        "base": run.base or Model.of(made["sample/base"]),
    }
    sample = make_sample(config.compare, candidates, run.at("compare/sample"), config.select_placement)
    one_by_one = config.placement.model_copy(update={"shards_in_flight": 1})  # else seconds of work count twice
    found = {}
    for name, scorer in config.compare.scorers.items():
        by = config.scored_by(scorer, max_failed_share=1.0).model_copy(update={"placement": one_by_one})
        place = run.at(f"compare/round-{round_number}/{name}")
        found[name] = make_scores(by, run.config.chat, sample, raters[scorer.rater], place)
    comparison = compare(round_number, found, config.compare.keep_share, good)
    uri = storage.join(run.root, "report", f"comparison-{round_number}.json")
    storage.write_bytes(uri, json.dumps(comparison.json(), indent=1).encode())
    return comparison, uri
