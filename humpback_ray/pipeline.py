"""The table of contents: instruction backtranslation from a web corpus and seed pairs to M_2 and a report.

    seed pairs ────────► backward, m0          scores_t = m_(t-1) rates candidates
    web ─► segments ─► corpus                  curated_t = the best of them
    corpus + backward ─► candidates            rewritten_t = curated_t said again, if there is a rewriter
                                               m_t = base, fine-tuned on seed + curated_t      t = 1, 2, ...
                                               (each on the tokens of its pairs, made once)

`stages` runs what is not done and yields each stage's manifest as it is there: a finished one costs a read, so the
same command again resumes. Every model starts from the base model; candidates are predicted once and only rated anew
(Li et al. 2023, arXiv:2308.06259, section 2). Where scorers are chained, `prescores` stand before a round's scores.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping

from humpback_ray import storage
from humpback_ray.augment import make_candidates
from humpback_ray.corpus.build import make_corpus, make_segments, sampled
from humpback_ray.curate.canaries import make_canaries
from humpback_ray.curate.compare import Comparison, compare, make_sample
from humpback_ray.curate.rounds import make_curated, make_scores
from humpback_ray.curate.scorers import Chained
from humpback_ray.evaluate.answers import make_answers, make_prompts
from humpback_ray.inputs.contamination import HeldOut
from humpback_ray.report import canary_sentences, failure_sentence, ratings, report, rounds, truth_sentences
from humpback_ray.rewrite import make_rewritten
from humpback_ray.run import Run, prescores_name
from humpback_ray.sample.build import make_base, make_check, make_web, web_files
from humpback_ray.sample.measure import measure
from humpback_ray.seed import make_seed
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.storage.inventory import Inventory, resolve
from humpback_ray.train.data.tokens import make_tokens
from humpback_ray.train.tune import fine_tune


def stages(run: Run) -> Iterator[Manifest]:
    """Run the stages in order, yielding each manifest; stop asking and nothing further is run."""
    config = run.config
    web = None
    if needs_sample(run):
        assert config.sample is not None
        yield (web := run.reused("sample/web") or make_web(config.sample, run.at("sample/web")))
    prompt_files = evaluation_files(run, web)
    held_out = HeldOut.of(config.contamination.recipe, prompt_files, run.inputs.get("contamination"))
    yield (seed := run.reused("seed") or make_seed(config.seed, inputs(run, "seed", web), run.at("seed"), held_out))
    if not (corpus := run.reused("corpus")):
        segments = run.reused("segments")
        if not segments:
            cut, files = config.corpus, inputs(run, "corpus", web)
            if config.pilot is not None:
                cut, files = sampled(cut, files, config.pilot)
            segments = make_segments(cut, files, run.at("segments"))
        yield segments
        corpus = make_corpus(config.corpus, segments, run.at("corpus"))
    yield corpus

    if run.base_model:
        base = Model(run.base_model, run.inputs["base_model"])
    else:
        assert config.sample is not None
        assert web is not None
        yield (made := run.reused("sample/base") or make_base(config.sample, web, run.at("sample/base")))
        base = Model.of(made)
        place = run.at("sample/check")
        yield (check := run.reused(place.name) or make_check(config.sample, web, place))
        place = run.at("sample/ratings")
        yield run.reused(place.name) or make_scores(config.curate.lenient(), config.chat, check, base, place)

    tokens: dict[str, Manifest] = {}

    def train(name: str, pairs: Mapping[str, Manifest]) -> Generator[Manifest, None, Manifest]:
        """Yield what is new of the tokens that a model learns from, then the model, which is also returned.

        Args:
            name: of the model.
            pairs: by the stage of their tokens.
        """
        if not (model := run.reused(f"models/{name}")):
            for stage, table in pairs.items():
                if stage not in tokens:
                    place = run.at(stage)
                    tokens[stage] = run.reused(stage) or make_tokens(config.train, config.chat, base, table, place)
                    yield tokens[stage]
            learned = [tokens[stage] for stage in pairs]
            model = fine_tune(config.train, config.chat, name, base, learned, run.at(f"models/{name}"))
        yield model
        return model

    backward = yield from train("backward", {"tokens/backward": seed})
    models = [model := (yield from train("m0", {"tokens/seed": seed}))]
    yield (
        candidates := run.reused("candidates")
        or make_candidates(config.augment, config.chat, corpus, Model.of(backward), run.at("candidates"), held_out)
    )
    canaries = None
    if config.curate.recipe.canaries:
        place = run.at("canaries")
        canaries = run.reused(place.name) or make_canaries(
            config.curate.recipe.scorer, config.chat, candidates, base, config.curate.select_placement, place
        )
        yield canaries
    scorer, prescores = config.curate.recipe.scorer, None
    for t, keep in enumerate(config.curate.recipe.rounds, start=1):
        raters = {"previous": Model.of(model), "base": base}
        if isinstance(scorer, Chained) and f"round-{t}/scores" not in run.reuse:
            name, by = prescores_name(scorer.first.rater, t), config.curate.scored_by(scorer.first)
            if prescores is None or prescores.stage != name:
                rater, place = raters[scorer.first.rater], run.at(name)
                prescores = run.reused(name) or make_scores(by, config.chat, candidates, rater, place)
                yield prescores
        place, rater = run.at(f"round-{t}/scores"), raters[scorer.rater]
        scores = run.reused(place.name) or make_scores(config.curate, config.chat, candidates, rater, place, prescores)
        yield scores
        if canaries:
            place = run.at(f"round-{t}/canary-scores")
            yield run.reused(place.name) or make_scores(config.curate.lenient(), config.chat, canaries, rater, place)
        place = run.at(f"round-{t}/curated")
        curated = run.reused(place.name) or make_curated(config.curate, keep, candidates, scores, place)
        yield curated
        if run.rewriter:
            place, rewriter = run.at(f"round-{t}/rewritten"), Model(run.rewriter, run.inputs["rewriter"])
            curated = run.reused(place.name) or make_rewritten(config.rewrite, config.chat, curated, rewriter, place)
            yield curated
        pairs = {"tokens/seed": seed} if config.train.recipe.joint else {}
        model = yield from train(f"m{t}", {**pairs, f"round-{t}/tokens": curated})
        models.append(model)

    if prompt_files:
        place = run.at("evaluation/prompts")
        yield (prompts := run.reused(place.name) or make_prompts(config.evaluate, prompt_files, place))
        for t, model in enumerate(models):
            place, answering = run.at(f"evaluation/m{t}"), Model.of(model)
            answers = run.reused(place.name) or make_answers(
                config.evaluate, config.chat, prompts, answering, f"m{t}", place
            )
            yield answers


def needs_sample(run: Run) -> bool:
    """Tell whether anything is taken from the embedded sample."""
    names = {"seed", "corpus", "evaluate"} - set(run.reuse)
    return run.config.sample is not None and ("base_model" not in run.inputs or not names <= set(run.inputs))


def inputs(run: Run, section: str, web: Manifest | None) -> Inventory:
    """Return a section's input files: the configuration's, or the sample's."""
    if section in run.inputs:
        return run.inputs[section]
    assert web is not None, f"{section} has neither inputs nor a sample; RunConfig refuses that"
    patterns = {"seed": "seed.jsonl", "corpus": "web/*.warc.gz", "evaluate": "prompts*.jsonl"}
    return resolve(f"{section}.recipe.inputs", [web_files(web, patterns[section])], run.hashes)


def evaluation_files(run: Run, web: Manifest | None) -> Inventory | None:
    """Return the prompts to answer; None where there are none, and then nothing is evaluated."""
    return inputs(run, "evaluate", web) if web is not None or "evaluate" in run.inputs else None


def compare_scorers(run: Run, made: Mapping[str, Manifest], round_number: int) -> tuple[Comparison, str]:
    """Rate one sample of the candidates with every scorer of `curate.compare`.

    Args:
        run: the run.
        made: its stages up to the model of the round before, by name.
        round_number: whose rater rates.

    Returns:
        The comparison, and the URI of a JSON file of it.
    """
    config, candidates = run.config.curate, made["candidates"]
    base = Model(run.base_model, run.inputs["base_model"]) if run.base_model else Model.of(made["sample/base"])
    raters = {"previous": Model.of(made[f"models/m{round_number - 1}"]), "base": base}
    sample = make_sample(config.compare, candidates, run.at("compare/sample"), config.select_placement)
    one_by_one = config.placement.model_copy(update={"shards_in_flight": 1})  # or seconds of work would count twice
    found = {}
    for name, scorer in config.compare.scorers.items():
        by = config.scored_by(scorer, max_failed_share=1.0).model_copy(update={"placement": one_by_one})
        place = run.at(f"compare/round-{round_number}/{name}")
        found[name] = make_scores(by, run.config.chat, sample, raters[scorer.rater], place)
    truth = measure({name: made[name] for name in ("sample/web", "candidates") if name in made})
    good = truth.candidates.good if truth and truth.candidates else None
    comparison = compare(round_number, found, config.compare.keep_share, good)
    uri = storage.join(run.root, "report", f"comparison-{round_number}.json")
    storage.write_bytes(uri, json.dumps(comparison.json(), indent=1).encode())
    return comparison, uri


def failures(made: Mapping[str, Manifest]) -> list[str]:
    """Say, of each round that rated, how many ratings failed before and after the retry."""
    return [failure_sentence(found) for number in rounds(made) if (found := ratings(made, number))]


def truths(run: Run) -> list[str]:
    """Return what the judge of the toy world says of the finished stages; [] for a run on other inputs."""
    found = measure({manifest.stage: manifest for manifest in run.finished()})
    return truth_sentences(found) if found else []


def attacks(manifests: Iterable[Manifest]) -> list[str]:
    """Return how many canaries of each round among some finished stages were rated well."""
    return canary_sentences({manifest.stage: manifest for manifest in manifests})


def write_report(root: str, made: Mapping[str, Manifest], out: str | None = None) -> str:
    """Write the report of the finished stages of a run; returns its URI.

    Args:
        root: of the run.
        made: its finished stages, by name.
        out: where to; None: into the root.
    """
    uri = out or storage.join(root, "report", "index.html")
    storage.write_bytes(uri, report(made).encode())
    return uri
