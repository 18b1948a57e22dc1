"""The method, end to end, at a size that a test can wait for: it fails if one of its parts does the opposite.

First `jobs.pipeline` runs a small world; then `jobs.miniature` finds that run done and adds one arm. One round without
canaries is enough for every assertion; under `chaos` the same is asserted for two rounds with all stages. Each
assertion was seen to fail when the package was broken on purpose:

    mutation (one at a time)                                        caught by
    loss on prompt tokens too (chat.encode_example, loss from 1)    no model has learned to write its own prompt
    swapped directions (examples.encode_pair)                       questions ask for what their segments state
    no tags at inference (respond.answer_request)                   questions are asked as models were trained
    selection inverted (select: below the threshold)                what is kept is good, and better than all
    candidates shuffled against segments (augment.candidates)       questions ask for what their segments state
    M_1 from M_0's pairs alone (pipeline.stages: no curated)        M_1 learned from seed and kept pairs
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pytest

from humpback_ray.config import ConfigError, load
from humpback_ray.engines import Request, TransformersEngine
from humpback_ray.graph import Graph, stage_names
from humpback_ray.miniature import arms as miniature
from humpback_ray.miniature.findings import CLAIMS, Values
from humpback_ray.miniature.measure import Measures, measure, rows
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.models import Model
from tests.report.test_page import Page, assert_inert

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "configs/demo.yaml"

SMALL = (
    "sample.world.seed_towns=32", "sample.world.pool_towns=32", "sample.world.unseen_towns=20",
    "sample.world.documents=20000", "sample.world.archives=2", "sample.world.prompts=90",
    "curate.placement.rows_per_shard=100", "train.placement.workers=1",
    # One thread for each model: two wait for each other by spinning, which takes minutes beside other work.
    "sample.placement.cpus=1", "augment.placement.cpus_per_replica=1", "curate.placement.cpus_per_replica=1",
    "evaluate.placement.cpus_per_replica=1",
)  # fmt: skip
BRIEF = (*SMALL, "curate.recipe.rounds=[{threshold: 4.0, min_kept: 0}]", "curate.recipe.canaries=false")
SEED = 3


class Size(NamedTuple):
    """How much of the method to run."""

    rounds: int
    settings: tuple[str, ...]

    @property
    def graph(self) -> Graph:
        return Graph(load(RunConfig, DEMO, self.settings))


SIZES = {"brief": Size(1, BRIEF), "thorough": Size(2, SMALL)}


@pytest.fixture(scope="module", params=["brief", pytest.param("thorough", marks=pytest.mark.chaos)])
def size(request: pytest.FixtureRequest) -> Size:
    return SIZES[request.param]


def job(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"jobs.{name}", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def joined(local_ray: "Cluster") -> Iterator[None]:
    """Jobs join the Ray of the tests instead of starting one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", str(local_ray.address))
        yield


@pytest.fixture(scope="module")
def run(size: Size, joined: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, at its place in a miniature."""
    run = tmp_path_factory.mktemp("miniature") / str(SEED) / "main"
    seeds = [f"{key}={SEED}" for key in miniature.SEEDED]
    out = job("pipeline", str(DEMO), f"root={run}", *seeds, *size.settings)
    assert f"models/m{size.rounds}" in out
    assert "The base model's self-check" in out
    return run


@pytest.fixture(scope="module")
def root(size: Size, run: Path) -> Path:
    """A miniature of that run and one arm."""
    root, before = run.parents[1], times(run)
    job("miniature", str(DEMO), f"root={root}", f"seeds=[{SEED}]", "arms=seed-only", *size.settings)
    after = times(run)
    changed = {path.relative_to(run).parts[0] for path in after if after[path] != before.get(path)}
    assert changed <= {"submissions", "report"}, "a finished run ran again"
    return root


def times(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(size: Size, root: Path) -> dict[str, Manifest]:
    found = {name: read_manifest(str(root / str(SEED) / "main" / name)) for name in size.graph.nodes}
    return {name: manifest for name, manifest in found.items() if manifest}


@pytest.fixture(scope="module")
def judged(made: Mapping[str, Manifest]) -> Measures:
    found = measure(made)
    assert found
    return found


@pytest.fixture(scope="module")
def values(root: Path) -> Values:
    return json.loads((root / str(SEED) / "values.json").read_text())


def chat() -> ChatRecipe:
    return load(RunConfig, DEMO).chat


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3000)  # minutes on free cores
def test_every_stage_is_there_and_verified(size: Size, root: Path, made: Mapping[str, Manifest]) -> None:
    assert list(made) == [*size.graph.nodes]
    proof = job("verify", str(root / str(SEED) / "main"))
    assert "sample/ratings: 440 rows" in proof
    job("verify", str(root / str(SEED) / "seed-only"))
    outputs = json.loads((root / str(SEED) / f"main/evaluation/m{size.rounds}/model_outputs.json").read_text())
    assert {*outputs[0]} == {"instruction", "output", "generator", "dataset"}
    assert outputs[0]["generator"] == f"m{size.rounds}"


@pytest.mark.ray
@pytest.mark.slow
def test_the_graph_says_what_every_stage_reads_writes_and_accounts_for(
    size: Size, made: Mapping[str, Manifest]
) -> None:
    by_uri = {manifest.uri: name for name, manifest in made.items()}
    for node in size.graph:
        manifest, writes = made[node.name], node.kind.writes
        read = {name: by_uri[uri] for name, uri in manifest.source_uris().items()}
        assert set(read.values()) <= set(node.reads), f"{node.name} is made of what the graph does not say"
        assert set(node.reads) - set(read.values()) <= {"sample/web"}, "its files are read, not its manifest"
        assert read.get(manifest.ids_of, "") == node.ids_of, node.name
        assert ("model" in manifest.extra) == (writes == "model"), node.name
        if isinstance(writes, pa.Schema):
            assert all(table.schema.equals(writes) for table in manifest.tables(kept=False)), node.name
        else:
            assert not manifest.rows, node.name


@pytest.mark.ray
@pytest.mark.slow
def test_the_reports_have_the_truth_section_and_nothing_executable(root: Path) -> None:
    for name, section in ((f"{SEED}/main/report/index.html", "truth"), ("findings.html", "claims")):
        page = Page((root / name).read_text())
        assert_inert(page)
        assert section in page.values("id")


@pytest.mark.ray
@pytest.mark.slow
def test_questions_ask_for_facts_of_their_segments(judged: Measures) -> None:
    assert judged.candidates
    assert judged.candidates.kinds["unknown"] == 0
    assert judged.question_accuracy is not None
    assert judged.question_accuracy > 0.6


@pytest.mark.ray
@pytest.mark.slow
def test_kept_pairs_are_good_and_better_than_all_pairs(judged: Measures) -> None:
    assert judged.candidates
    good = len(judged.candidates.good)
    of_all = good / (good + len(judged.candidates.others))
    assert of_all < 0.6
    rater = judged.raters[1]
    assert rater.precision is not None
    assert rater.precision > max(0.75, of_all + 0.2)
    assert rater.auc is not None
    assert rater.auc > 0.75


@pytest.mark.ray
@pytest.mark.slow
def test_m1_learned_from_seed_and_kept_pairs(made: Mapping[str, Manifest]) -> None:
    kept = made["round-1/curated"].kept
    assert kept > 30
    assert made["models/m1"].extra["examples"]["kept"] == made["seed"].kept + kept
    assert made["models/m0"].extra["examples"]["kept"] == made["seed"].kept


@pytest.mark.ray
@pytest.mark.slow
def test_m1_is_better_than_m0_and_than_the_seed_alone_for_as_many_steps(values: Values) -> None:
    m0, m1, seed_only = (values[f"{name}.test.unseen"] for name in ("m0", "m1", "seed-only"))
    assert m0 is not None
    assert m1 is not None
    assert seed_only is not None
    assert m1 > m0 + 0.1
    assert m1 > seed_only


@pytest.mark.ray
@pytest.mark.slow
def test_no_model_has_learned_to_write_its_own_prompt(made: Mapping[str, Manifest]) -> None:
    """The base has never seen a tag; a model whose loss reached its prompts would write it with certainty."""
    layout, tag = chat().forward, chat().seed_tag
    assert tag

    async def surprise(model: Manifest) -> float:
        engine = TransformersEngine().build(Model.of(model).uri, Resources())
        completion = await engine.generate(Request(layout.opening, continuations=(tag,)))
        engine.close()
        assert completion.logprobs
        return -completion.logprobs[0]

    base, m0 = (asyncio.run(surprise(made[name])) for name in ("sample/base", "models/m0"))
    assert m0 > base / 2


@pytest.mark.ray
@pytest.mark.slow
def test_questions_are_asked_as_models_were_trained(made: Mapping[str, Manifest]) -> None:
    """With the template that is exported with the model; it renders both tags."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Model.of(made["models/m1"]).uri)
    for row in rows(made["evaluation/m1"], ["instruction", "prompt_tokens"]):
        messages = [{"role": "user", "content": row["instruction"]}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for tag in chat().tags("both"):
            assert tag in text
        assert len(tokenizer.encode(text, add_special_tokens=False)) == row["prompt_tokens"]


def test_every_arm_is_a_run_and_every_claim_has_its_values() -> None:
    found = miniature.arms(kept=8, steps=200)
    names = [arm.name for arm in found]
    assert len(set(names)) == len(names)
    for arm in found:
        assert set(arm.own) <= set(stage_names(1))
        config = load(RunConfig, DEMO, arm.changes)
        reuse = {name: "s3://there/it" for name in stage_names(1) if name not in arm.own}
        load(RunConfig, DEMO, [*arm.changes, f"reuse={json.dumps(reuse)}"])
        assert arm.changes == () or config != load(RunConfig, DEMO)
    measured = {f"{name}.test.unseen" for name in ("m0", "m1", "m2", *names)}
    measured |= {f"rater-m{number}.precision" for number in (0, 1)}
    assert {name for claim in CLAIMS for name in (claim.left, claim.right)} <= measured


def test_without_kept_pairs_there_is_nothing_to_vary_the_size_of() -> None:
    names = {arm.name for arm in miniature.arms(kept=0, steps=200)}
    assert names == {
        "base", "rated-by-m2", "seed-only", "untagged", "asked-seed", "asked-augmented", "asked-none",
    }  # fmt: skip


def test_seeds_are_drawn_once_and_stay(tmp_path: Path) -> None:
    drawn = miniature.draw_seeds(str(tmp_path / "a"), "5")
    assert len(set(drawn)) == 5
    assert miniature.draw_seeds(str(tmp_path / "a"), "5") == drawn
    assert miniature.draw_seeds(str(tmp_path / "b"), "5") != drawn
    assert miniature.draw_seeds(str(tmp_path / "c"), "[4, 2]") == [4, 2]
    with pytest.raises(ConfigError, match=r"started with the seeds \[4, 2\], not 3"):
        miniature.draw_seeds(str(tmp_path / "c"), "3")
    for wrong in ("many", "0", "[]"):
        with pytest.raises(ConfigError, match="number of seeds"):
            miniature.draw_seeds(str(tmp_path / "d"), wrong)


@pytest.mark.parametrize("change", ["base_model=models/7b", "corpus.recipe.inputs=[pages]", "seed.recipe.inputs=[s]"])
def test_a_run_on_other_input_is_refused_since_its_truth_is_not_known(change: str) -> None:
    with pytest.raises(ConfigError, match=f"{change.partition('=')[0]} is set"):
        miniature.check(load(RunConfig, DEMO, [change]))
    miniature.check(load(RunConfig, DEMO))
