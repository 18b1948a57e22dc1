"""The table of contents: instruction backtranslation from a web corpus and seed pairs to M_2.

    seed pairs ────────► backward, m0          scores_t = m_(t-1) rates candidates
    web ─► segments ─► corpus                  curated_t = the best of them
    corpus + backward ─► candidates            rewritten_t = curated_t reworded, if a rewriter is set
                                               m_t = base, fine-tuned on seed + curated_t      t = 1, 2, ...
                                               (on rewritten_t if there is one; without the seed if `joint` is off)
                                               (pairs are tokenized once, before training)

`stages` runs the stages that are not done and yields each stage's manifest as soon as it exists. A finished stage costs
one read, so the same command resumes a run. Every model starts from the base model. Candidates are predicted once; each
round only rates them again (Li et al. 2023, arXiv:2308.06259, section 2). graph.py says what each stage reads and when
it is part of a run.
"""

from collections.abc import Callable, Iterator

from humpback_ray.augment import make_candidates
from humpback_ray.context import StageContext
from humpback_ray.corpus.build import make_corpus, make_segments
from humpback_ray.curate.canaries import make_canaries
from humpback_ray.curate.rounds import make_curated, make_prescores, make_scores
from humpback_ray.evaluate.answers import make_answers, make_prompts
from humpback_ray.rewrite import make_rewritten
from humpback_ray.run import Run
from humpback_ray.sample.build import make_base, make_check, make_web
from humpback_ray.seed import make_seed
from humpback_ray.stages.manifest import Manifest
from humpback_ray.train.data.tokens import make_tokens
from humpback_ray.train.tune import fine_tune

METHOD: dict[str, Callable[[StageContext], Manifest]] = {
    "sample/web": lambda s: make_web(s.sample, s.place),
    "seed": lambda s: make_seed(s.config.seed, s.files("seed"), s.place, s.held_out),
    "segments": lambda s: make_segments(s.config.corpus, s.files("corpus"), s.place, s.config.pilot),
    "corpus": lambda s: make_corpus(s.config.corpus, s["segments"], s.place),
    "sample/base": lambda s: make_base(s.sample, s["sample/web"], s.place),
    "sample/check": lambda s: make_check(s.sample, s["sample/web"], s.place),
    "sample/ratings": lambda s: make_scores(s.config.curate.lenient(), s.chat, s["sample/check"], s.base, s.place),

    "tokens/backward": lambda s: make_tokens(s.config.train, s.chat, s.base, s.pairs, s.place, "backward"),
    "models/backward": lambda s: fine_tune(s.config.train, s.chat, "backward", s.base, s.tokens, s.place),
    "tokens/seed": lambda s: make_tokens(s.config.train, s.chat, s.base, s.pairs, s.place),
    "models/m0": lambda s: fine_tune(s.config.train, s.chat, "m0", s.base, s.tokens, s.place),
    "candidates": lambda s: make_candidates(
        s.config.augment, s.chat, s["corpus"], s.model("models/backward"), s.place, s.held_out
    ),

    "canaries": lambda s: make_canaries(s.config.curate, s.chat, s["candidates"], s.base, s.place),
    "prescores": lambda s: make_prescores(s.config.curate, s.chat, s["candidates"], s.rater, s.place),
    "round-{t}/prescores": lambda s: make_prescores(s.config.curate, s.chat, s["candidates"], s.rater, s.place),
    "round-{t}/scores": lambda s: make_scores(
        s.config.curate, s.chat, s["candidates"], s.rater, s.place, s.prescores
    ),
    "round-{t}/canary-scores": lambda s: make_scores(
        s.config.curate.lenient(), s.chat, s["canaries"], s.rater, s.place
    ),
    "round-{t}/curated": lambda s: make_curated(
        s.config.curate, s.round, s["candidates"], s["round-{t}/scores"], s.place
    ),
    "round-{t}/rewritten": lambda s: make_rewritten(s.config.rewrite, s.chat, s.pairs, s.rewriter, s.place),
    "round-{t}/tokens": lambda s: make_tokens(s.config.train, s.chat, s.base, s.pairs, s.place),
    "models/m{t}": lambda s: fine_tune(s.config.train, s.chat, f"m{s.round}", s.base, s.tokens, s.place),

    "evaluation/prompts": lambda s: make_prompts(s.config.evaluate, s.files("evaluate"), s.place),
    "evaluation/m{t}": lambda s: make_answers(
        s.config.evaluate, s.chat, s.pairs, s.model("models/m{t}"), f"m{s.round}", s.place
    ),
}  # fmt: skip
"""How each stage of the graph is made. `s` (context.py) has the run's settings and the stages that this one may read:
`s["round-{t}/scores"]` is this round's, and `s.pairs` is the stage whose rows this one must account for."""


def stages(run: Run) -> Iterator[Manifest]:
    """Run the stages in order and yield each manifest; no further stage runs once the caller stops iterating."""
    made: dict[str, Manifest] = {}
    for node in run.graph:
        made[node.name] = run.reused(node.name) or METHOD[node.kind.name](StageContext(run, node, made))
        yield made[node.name]
