"""The list of stages: its order, the stages that a configuration leads to, and the work to add a stage."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import graph, pipeline, storage
from humpback_ray.config import ConfigError, load
from humpback_ray.context import StageContext
from humpback_ray.graph import Graph, Kind, each_round, kind_of, models, stage_names
from humpback_ray.operate.gc import survey
from humpback_ray.operate.limits import dollars_per_s
from humpback_ray.operate.plan import plan_run
from humpback_ray.operate.status import status
from humpback_ray.operate.verify import verify
from humpback_ray.records import PAIR
from humpback_ray.report import report
from humpback_ray.run import Run, finished_stages
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage

DEMO = Path(__file__).parents[1] / "configs/demo.yaml"


def graph_of(*overrides: str) -> Graph:
    return Graph(load(RunConfig, DEMO, overrides))


def test_stages_stand_in_the_order_of_the_run() -> None:
    names = graph_of().until(None)
    assert names == [
        "sample/web", "seed", "segments", "corpus", "sample/base", "sample/check", "sample/ratings",
        "tokens/backward", "models/backward", "tokens/seed", "models/m0", "candidates", "canaries",
        *(f"{name}" for t in (1, 2) for name in (
            f"round-{t}/scores", f"round-{t}/canary-scores", f"round-{t}/curated", f"round-{t}/tokens", f"models/m{t}",
        )),
        "evaluation/prompts", "evaluation/m0", "evaluation/m1", "evaluation/m2",
    ]  # fmt: skip
    assert graph_of().until("corpus") == names[:4]
    with pytest.raises(ConfigError, match=r"round-2/rewritten is not a stage of this run; its stages are sample/web, "):
        graph_of().until("round-2/rewritten")
    assert [name for name in stage_names(2) if name in names] == names, "the order is the same whatever is there"


def test_each_stage_reads_stages_above_it_and_the_pipeline_makes_it() -> None:
    everything = graph_of("rewrite.model=there", "curate.recipe.scorer={kind: chained}")
    above: set[str] = set()
    for node in everything:
        assert set(node.reads) <= above, node.name
        assert not node.ids_of or node.ids_of in node.reads, node.name
        assert kind_of(node.name) is node.kind
        above.add(node.name)
    assert pipeline.METHOD.keys() == {kind.name for kind in graph.KINDS if not kind.apart}


def test_how_a_configuration_changes_what_stages_read() -> None:
    plain = graph_of().nodes
    assert plain["models/m2"].reads == ("sample/base", "tokens/seed", "round-2/tokens")
    assert plain["round-2/scores"].reads == ("candidates", "models/m1")
    assert plain["round-2/tokens"].ids_of == "round-2/curated"
    assert "sample/web" in plain["seed"].reads
    changed = graph_of(
        "base_model=there", "seed.recipe.inputs=[a]", "evaluate.recipe.inputs=[b]", "train.recipe.joint=false",
        "rewrite.model=it", "curate.recipe.scorer={kind: rubric, rater: base}", "curate.recipe.canaries=false",
    ).nodes  # fmt: skip
    assert changed["models/m2"].reads == ("round-2/tokens",)
    assert changed["round-2/scores"].reads == ("candidates",), "the base model is not a stage"
    assert changed["round-2/tokens"].ids_of == "round-2/rewritten"
    assert changed["seed"].reads == ()
    assert not {"sample/base", "canaries", "round-1/canary-scores"} & changed.keys()
    assert "sample/web" in changed, "the corpus is still the sample's"


def test_a_stage_on_demand_is_in_the_run_if_a_stage_to_make_reads_it() -> None:
    assert "segments" not in graph_of("reuse.corpus=there").nodes
    both = graph_of("reuse.corpus=there", "reuse.segments=there")
    assert [node.name for node in both.to_make()][:2] == ["sample/web", "seed"]
    assert "segments" in both.nodes, "a stage that is named is shown"
    assert "tokens/seed" in graph_of("reuse={models/m0: a, models/m1: b}").nodes, "m2 learns from it"
    late = graph_of("reuse={models/m0: a, models/backward: b}").until("models/m1")
    assert late[-3:] == ["tokens/seed", "round-1/tokens", "models/m1"]
    assert late.index("candidates") < late.index("tokens/seed"), "stages before its reader do not wait for it"
    assert "tokens/seed" not in graph_of("reuse={models/m0: a, models/m1: b, models/m2: c}").nodes


def test_cheap_scores_of_a_chain_are_made_each_round_or_by_the_base_model_once() -> None:
    names = graph_of("curate.recipe.scorer={kind: chained}").until(None)
    assert [name for name in names if "prescores" in name] == ["round-1/prescores", "round-2/prescores"]
    assert names.index("round-2/scores") == names.index("round-2/prescores") + 1
    base = "curate.recipe.scorer={kind: chained, first: {kind: likelihood, rater: base}}"
    names = graph_of(base).until(None)
    assert [name for name in names if "prescores" in name] == ["prescores"]
    assert names.index("candidates") < names.index("prescores") < names.index("round-1/scores")
    assert "prescores" not in graph_of(base, "reuse={round-1/scores: a, round-2/scores: b}").nodes


def test_a_reused_stage_must_be_one() -> None:
    with pytest.raises(
        ConfigError, match=r"reuse names round-3/scores, which is not a stage; the stages are sample/web"
    ):
        graph_of("reuse={round-3/scores: there}")


def test_names_are_read_back() -> None:
    found = {name: name for name in stage_names()}
    assert each_round(found, "round-{t}/scores")[9] == "round-9/scores"
    assert [*each_round(found, "evaluation/m{t}")] == [*range(10)]
    assert [*models(found)][:3] == ["base", "backward", "m0"]
    compared = ["compare/sample/plan.json", "compare/round-2/ifd/data/0.parquet", "compare/else"]
    assert stage_names(files=compared)[-2:] == ["compare/sample", "compare/round-2/ifd"]
    assert kind_of("round-1/other") is kind_of("models/m1x") is None


# A new stage: its own module, of which this is the heart ...


def make_shouted(seed: Manifest, place: Place) -> Manifest:
    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, PAIR)
        for table in seed.tables():
            rows = [{**row, "instruction": row["instruction"].upper()} for row in table.to_pylist()]
            writer.write(pa.Table.from_pylist(rows, schema=PAIR))
        return writer.commit()

    return Stage(place, {"version": 1}, {"seed": seed}, PAIR, ids_of="seed").leased(write)


@pytest.fixture
def with_shouted(monkeypatch: pytest.MonkeyPatch) -> None:
    """... and the two places that know about it."""
    kind = Kind("shouted", PAIR, "seed", ("seed",), "seed")
    after_seed = next(index for index, known in enumerate(graph.KINDS) if known.name == "seed") + 1
    monkeypatch.setattr(graph, "KINDS", (*graph.KINDS[:after_seed], kind, *graph.KINDS[after_seed:]))

    def make(context: StageContext) -> Manifest:
        return make_shouted(context["seed"], context.place)

    monkeypatch.setitem(pipeline.METHOD, "shouted", make)


def test_a_new_stage_takes_a_line_in_the_graph_and_one_in_the_pipeline(
    with_shouted: None, local_ray: None, tmp_path: Path
) -> None:
    pairs = [{"instruction": f"What is {i}?", "response": f"It is {i}."} for i in range(5)]
    (tmp_path / "seed.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    overrides = [f"root={tmp_path}/run", f"seed.recipe.inputs=[{tmp_path}/seed.jsonl]", "seed.placement.cpus=0.5"]
    overrides += [f"evaluate.recipe.inputs=[{tmp_path}/prompts.jsonl]"]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"instruction": "Say something else entirely."}))
    config = load(RunConfig, DEMO, overrides)
    run = Run(config)
    made: dict[str, Manifest] = {}
    for manifest in pipeline.stages(run):
        made[manifest.stage] = manifest
        if manifest.stage == "shouted":
            break
    assert list(made) == ["seed", "shouted"]
    assert made["shouted"].kept == 5

    root = run.root
    assert list(finished_stages(root)) == list(made)
    states = {stage.name: (stage.state, stage.done) for stage in status(root).stages}
    assert states["shouted"] == ("done", 5)
    assert states["corpus"] == ("waiting", None)
    said = list(verify(root))
    assert any(line.startswith("shouted: 5 rows") and "each of 5 ids from seed has one fate" in line for line in said)
    storage.write_bytes(f"{root}/shouted/data/unknown.txt", b"")
    assert survey(root, 0).unknown == ["shouted/data/unknown.txt"], "gc knows the ledger's other files"
    assert dollars_per_s(run.graph, "shouted") == pytest.approx(0.5 * dollars_per_s(graph_of(), "seed"))
    assert "shouted" in plan_run(config).others
    assert "<td>shouted</td><td>5</td><td>5</td>" in report(made)


def test_a_stage_sees_only_what_the_graph_says_it_reads(
    with_shouted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(load(RunConfig, DEMO, [f"root={tmp_path}/run"]))
    web = Stage(run.at("sample/web"), {}, {}).leased(lambda attempt: attempt.describe([], {}))
    context = StageContext(run, run.graph.nodes["shouted"], {"seed": web, "sample/web": web})
    with pytest.raises(KeyError, match=r"shouted does not read sample/web; graph\.py says what it reads"):
        context["sample/web"]
