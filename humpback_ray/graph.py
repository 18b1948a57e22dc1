"""Every stage of a run, listed once: its inputs, its output, its settings, and when it is part of a run.

`KINDS` is the list. In its names, `{t}` is the number of a round, `{before}` the number of the previous round, and
`{scorer}` a scorer that is compared. A stage's name is also its directory. A `Graph` holds the stages that one
configuration leads to. pipeline.py binds each kind to the function that makes it; that function can read only the
stages that are declared here.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeVar

import pyarrow as pa

from humpback_ray import seed, storage
from humpback_ray.config import ConfigError
from humpback_ray.corpus.again import CUT_AGAIN
from humpback_ray.curate.scorers import Chained
from humpback_ray.evaluate import answers
from humpback_ray.inputs.promptfiles import PROMPT
from humpback_ray.libraries import declared, refuse_missing
from humpback_ray.packages import Package
from humpback_ray.placement import PoolPlacement, TaskPlacement, TrainPlacement
from humpback_ray.records import CANARY, CANDIDATE, PAIR, RESPONSE, REWRITE, SCORE, SEGMENT, TOKENS
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.proof import Again, Together

Read = str | Callable[[RunConfig], str | None]
"""The name of a stage to read, or a function that names it for a configuration; None: nothing is read."""
MOST_ROUNDS = 9
"""Most rounds of a configuration, and the number of rounds that a search for stages covers."""
T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A line of the list."""

    name: str
    writes: pa.Schema | Literal["model", "files"]
    """The schema of its table; a model is a directory of files with `model` in the commit's `extra`."""
    section: str
    """The section of RunConfig that holds its settings."""
    reads: tuple[Read, ...] = ()
    """The stages that it reads. One that is not part of the run is skipped: the run then reads files from outside."""
    ids_of: Read = ""
    """The stage in `reads` whose kept ids must all appear here, each exactly once; "" if there is no such stage."""
    placement: str = "placement"
    """The section's field with the placement."""
    needs: tuple[str, ...] = ()
    """Dotted fields of the section that name the libraries its workers import."""
    present: Callable[[RunConfig], object] = lambda config: True
    """Whether a run with this configuration has the stage; any true value counts."""
    on_demand: bool = False
    """Make it only if a stage that must be made reads it, just before the first such stage."""
    apart: bool = False
    """Not part of a run: `jobs.curate --compare` makes it."""
    first: int = 1
    """The first round that has one."""
    again: Again | None = None
    """How `jobs.verify` makes its rows again from files; None if it reads no files or makes no rows."""


def sample(*sections: str) -> Read:
    """Read the sample's web if any of the sections names no files of its own."""

    def read(config: RunConfig) -> str | None:
        return "sample/web" if config.sample and not all(config.files()[name] for name in sections) else None

    return read


def rater(config: RunConfig) -> str:
    """Read the model that rates."""
    return "sample/base" if config.curate.recipe.scorer.rater == "base" else "models/m{before}"


def prescores(config: RunConfig) -> str | None:
    """Read the cheap scores of a chain of scorers; scores by the base model are the same in every round."""
    scorer = config.curate.recipe.scorer
    if not isinstance(scorer, Chained):
        return None
    return "prescores" if scorer.first.rater == "base" else "round-{t}/prescores"


def kept(config: RunConfig) -> str:
    """Read the pairs that a round ends with."""
    return "round-{t}/rewritten" if config.rewrite.model else "round-{t}/curated"


def joint(config: RunConfig) -> str | None:
    """Read the seed's tokens if models learn from them and a round's pairs together."""
    return "tokens/seed" if config.train.recipe.joint else None


def no_base(config: RunConfig) -> bool:
    """Tell whether the base model is the sample's."""
    return config.base_model is None


def asked(config: RunConfig) -> object:
    """Tell whether the run has prompts to answer."""
    return config.evaluate.recipe.inputs or config.sample


ENGINE, TRAINING = ("recipe.engine",), ("recipe", "placement")
BASE = "sample/base"

KINDS = (
    Kind("sample/web", "files", "sample", on_demand=True),
    Kind("seed", PAIR, "seed", (sample("seed", "evaluate"),), again=Together(seed.ids_again)),
    Kind("segments", SEGMENT, "corpus", (sample("corpus"),), needs=("recipe",), on_demand=True, again=CUT_AGAIN),
    Kind("corpus", SEGMENT, "corpus", ("segments",), "segments", placement="duplicates_placement"),
    Kind("sample/base", "model", "sample", ("sample/web",), present=no_base),
    Kind("sample/check", CANDIDATE, "sample", ("sample/web",), present=no_base),
    Kind("sample/ratings", SCORE, "curate", ("sample/check", BASE), "sample/check", needs=ENGINE, present=no_base),
    Kind("tokens/backward", TOKENS, "train", ("seed", BASE), "seed", placement="tokens_placement", on_demand=True),
    Kind("models/backward", "model", "train", (BASE, "tokens/backward"), needs=TRAINING),
    Kind("tokens/seed", TOKENS, "train", ("seed", BASE), "seed", placement="tokens_placement", on_demand=True),
    Kind("models/m0", "model", "train", (BASE, "tokens/seed"), needs=TRAINING),
    Kind("candidates", CANDIDATE, "augment", ("corpus", "models/backward", sample("evaluate")), "corpus",
         needs=("recipe.engine", "recipe.filters")),
    Kind("canaries", CANARY, "curate", ("candidates", BASE), placement="select_placement",
         present=lambda config: config.curate.recipe.canaries),
    Kind("prescores", SCORE, "curate", ("candidates", BASE), "candidates", needs=ENGINE, on_demand=True),

    Kind("round-{t}/prescores", SCORE, "curate", ("candidates", "models/m{before}"), "candidates", needs=ENGINE,
         on_demand=True),
    Kind("round-{t}/scores", SCORE, "curate", ("candidates", rater, prescores), "candidates", needs=ENGINE),
    Kind("round-{t}/canary-scores", SCORE, "curate", ("canaries", rater), "canaries", needs=ENGINE,
         present=lambda config: config.curate.recipe.canaries),
    Kind("round-{t}/curated", PAIR, "curate", ("candidates", "round-{t}/scores"), "candidates",
         placement="select_placement"),
    Kind("round-{t}/rewritten", REWRITE, "rewrite", ("round-{t}/curated",), "round-{t}/curated", needs=ENGINE,
         present=lambda config: config.rewrite.model),
    Kind("round-{t}/tokens", TOKENS, "train", (kept, BASE), kept, placement="tokens_placement", on_demand=True),
    Kind("models/m{t}", "model", "train", (BASE, joint, "round-{t}/tokens"), needs=TRAINING),

    Kind("evaluation/prompts", PROMPT, "evaluate", (sample("evaluate"),), placement="prompts_placement", present=asked,
         again=Together(answers.ids_again)),
    Kind("evaluation/m{t}", RESPONSE, "evaluate", ("evaluation/prompts", "models/m{t}"), "evaluation/prompts",
         needs=ENGINE, present=asked, first=0),

    Kind("compare/sample", CANDIDATE, "curate", ("candidates",), "candidates", placement="select_placement",
         apart=True),
    Kind("compare/round-{t}/{scorer}", SCORE, "curate", ("compare/sample", "models/m{before}", BASE), "compare/sample",
         needs=ENGINE, apart=True),
)  # fmt: skip
"""In the order in which a run makes them; each block of lines with `{t}` repeats for each round. A stage reads only
stages above it or stages of the previous round."""


@dataclass(frozen=True)
class Node:
    """A stage of one run."""

    name: str
    kind: Kind
    round: int | None
    """None if the stage belongs to no round."""
    reads: tuple[str, ...]
    """The stages of the run that it reads."""
    ids_of: str


class Graph:
    """The stages that a configuration leads to, in the order in which a run makes them.

    Args:
        config: of the run.

    Raises:
        ConfigError: `reuse` names an unknown stage.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        rounds = len(config.curate.recipe.rounds)
        if unknown := [name for name in config.reuse if name not in stage_names(rounds)]:
            known = ", ".join(stage_names(rounds))
            raise ConfigError(f"reuse names {unknown[0]}, which is not a stage; the stages are {known}")
        listed = {name: (kind, t) for name, kind, t in _listed(rounds) if kind.present(config)}
        known = {name: self._node(name, kind, t, listed) for name, (kind, t) in listed.items()}
        self.nodes: dict[str, Node] = {}
        for node in known.values():
            if not node.kind.on_demand or node.name in config.reuse:
                self._take(node, known)

    def _node(self, name: str, kind: Kind, t: int | None, listed: Collection[str]) -> Node:
        reads = (_filled(read, self.config, t) for read in kind.reads)
        there = tuple(read for read in reads if read is not None and read in listed)
        return Node(name, kind, t, there, _filled(kind.ids_of, self.config, t) or "")

    def _take(self, node: Node, known: Mapping[str, Node]) -> None:
        """Add a stage to the run, after the on-demand stages that it needs."""
        for name in node.reads if node.name not in self.config.reuse else ():
            if known[name].kind.on_demand and name not in self.nodes:
                self._take(known[name], known)
        self.nodes.setdefault(node.name, node)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def until(self, last: str | None) -> list[str]:
        """Return the names of the stages up to and including `last`; all of them for None.

        Raises:
            ConfigError: the run has no such stage.
        """
        known = [*self.nodes]
        if last is not None and last not in known:
            raise ConfigError(f"{last} is not a stage of this run; its stages are {', '.join(known)}")
        return known[: known.index(last) + 1] if last else known

    def to_make(self) -> list[Node]:
        """Return the stages that are not reused from other runs."""
        return [node for node in self if node.name not in self.config.reuse]

    def placement(self, stage: str) -> PoolPlacement | TaskPlacement | TrainPlacement | None:
        """Return the placement of a stage; None if its section is not set."""
        kind = kind_of(stage)
        return getattr(getattr(self.config, kind.section), kind.placement, None) if kind else None

    def packages(self, stages: Collection[str]) -> list[tuple[str, Package]]:
        """Return the libraries that workers need for some stages, each with the key that asks for it."""
        kinds = [kind for stage in stages if (kind := kind_of(stage))]
        keys = dict.fromkeys(f"{kind.section}.{part}" for kind in kinds for part in kind.needs)
        found: list[tuple[str, Package]] = []
        for key in keys:
            section: Any = self.config
            for part in key.split("."):
                section = getattr(section, part, None)
            found += declared(section, key) if section is not None else []
        return found

    def check_packages(self, stages: Collection[str]) -> None:
        """Check that this environment has the libraries for some stages; finished stages need none.

        Raises:
            ConfigError: libraries are missing; one line, with the command that installs them.
        """
        if not self.config.check_packages:
            return
        try:
            refuse_missing(self.packages(stages))
        except ConfigError:
            root = storage.located(self.config.root)
            refuse_missing(self.packages([name for name in stages if not (
                name in self.config.reuse or storage.exists(storage.join(root, name, "manifest.json"))
            )]))  # fmt: skip


def _filled(read: Read, config: RunConfig, t: int | None) -> str | None:
    """Return the name of the stage to read."""
    name = read if isinstance(read, str) else read(config)
    return name.format(t=t, before=(t or 0) - 1) if name is not None else None


def _listed(rounds: int) -> Iterator[tuple[str, Kind, int | None]]:
    """Yield the name, kind and round of every stage that a run of `rounds` rounds can have."""
    for repeated, group in groupby((kind for kind in KINDS if not kind.apart), key=lambda kind: "{t}" in kind.name):
        kinds = list(group)
        for t in range(rounds + 1) if repeated else [None]:
            yield from ((k.name.format(t=t), k, t) for k in kinds if t is None or t >= k.first)


def stage_names(rounds: int = MOST_ROUNDS, files: Iterable[str] = ()) -> list[str]:
    """Return the names that the stages of a run can have, whatever its configuration.

    Args:
        rounds: number of rounds.
        files: names of files below the root; they show which stages apart from the run exist.
    """
    found, files = [name for name, _, _ in _listed(rounds)], list(files)  # read once for each kind
    for kind in (kind for kind in KINDS if kind.apart):
        rule = re.compile(rf"({_pattern(kind.name).pattern})/.+")
        found += sorted({match[1] for file in files if (match := rule.fullmatch(file))})
    return found


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(name.format(t=r"\d+", scorer="[^/]+"))


def kind_of(stage: str) -> Kind | None:
    """Return the first kind that a stage's name matches."""
    return next((kind for kind in KINDS if _pattern(kind.name).fullmatch(stage)), None)


def each_round(stages: Mapping[str, T], name: str) -> dict[int, T]:
    """Return the stages of a kind such as `round-{t}/scores`, by round, from some stages by name."""
    known = [(t, name.format(t=t)) for t in range(MOST_ROUNDS + 1)]
    return {t: stages[stage] for t, stage in known if stage in stages}


def models(stages: Mapping[str, T]) -> dict[str, T]:
    """Return the models among some stages, under their short names: `base`, `backward`, `m0`, `m1`, ..."""
    made = {name: value for name, value in stages.items() if (kind := kind_of(name)) and kind.writes == "model"}
    return {name.rpartition("/")[2]: value for name, value in made.items()}
