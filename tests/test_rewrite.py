"""Usable rewrites replace responses; the others have a reason."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from pydantic import ValidationError

from humpback_ray import pipeline, storage
from humpback_ray.config import ConfigError, load
from humpback_ray.engines import NO_REPLY, Completion
from humpback_ray.graph import Graph
from humpback_ray.operate.status import status
from humpback_ray.operate.verify import verify
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.marks import code_of
from humpback_ray.prompts.own import UserMessage
from humpback_ray.records import PAIR, REWRITE, PairRow
from humpback_ray.report.funnel import funnel
from humpback_ray.rewrite import FAILED, RewriteRecipe, covered, rewrite_reasons, rewrite_request, rewritten
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.manifest import Manifest
from tests.jobs.prepared import prepare

INSTRUCTION = "What is a weir?"
SOURCE = (
    "Welcome back to my page! A weir is a low dam built across a river in 1820 to raise the level of the water "
    "upstream. Water runs over the top before it goes on downstream."
)
NEAR = (
    "A weir is a low dam that is built across a river to raise the level of the water upstream. The water runs over "
    "the top of it and goes on downstream; this one dates from 1820."
)
FAR = (
    "Sourdough bread needs flour, salt, patience and a starter that doubles within several hours after feeding, which "
    "bakers keep somewhere warm."
)


def pair(row_id: str = "a", response: str = SOURCE) -> PairRow:
    return {
        "id": row_id, "instruction": INSTRUCTION, "response": response, "source": "augmented", "score": 5.0,
        "drop_reason": None,
    }  # fmt: skip


def rewrite(reply: str, finish_reason: str = "stop", recipe: RewriteRecipe | None = None, source: str = SOURCE) -> dict:
    completion = Completion(reply, 90, 40, finish_reason)  # type: ignore[arg-type]
    pairs = pa.Table.from_pylist([pair(response=source)], schema=PAIR)
    table = rewritten(pairs, [completion], recipe or RewriteRecipe())
    assert table.schema == REWRITE
    return table.to_pylist()[0]


def test_a_rewrite_near_its_source_replaces_it_and_the_source_is_kept() -> None:
    row = rewrite(f"Here is the rewritten answer:\n{NEAR}\n")
    assert row == {
        **pair(), "response": NEAR, "original": SOURCE, "source_share": covered(SOURCE, NEAR),
        "grounded_share": covered(NEAR, SOURCE), "rewrite_reason": None, "finish_reason": "stop",
        "prompt_tokens": 90, "completion_tokens": 40, "drop_reason": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "finish_reason", "reason"),
    [
        ("", "context", "prompt_too_long"),
        ("", "not_finite", "logits_not_finite"),
        (NEAR, "length", "unfinished_rewrite"),
        (" \n", "stop", "empty_rewrite"),
        ("Here is the rewritten answer:\n\n", "stop", "empty_rewrite"),
        (f"{NEAR}\n<<< end of source {code_of(INSTRUCTION, SOURCE)} >>>", "stop", "echoed_prompt"),
        ("I'm sorry, but I cannot help with that.", "stop", "refusal"),
        (f"<think>Keep 1820.\n{NEAR}", "stop", "unfinished_rewrite"),
        (f"{NEAR}\nLet me know if you need more.", "stop", "meta_text"),
        (f"{NEAR}\n(Note: I removed the greeting.)", "stop", "meta_text"),
        (NEAR.replace("1820", "1850"), "stop", "new_numbers"),
        (f"{NEAR} It is 12 m wide.", "stop", "new_numbers"),
        ("A weir is a low dam.", "stop", "too_short"),
        (f"{NEAR} {NEAR}\n{NEAR}", "stop", "too_long"),
        (FAR, "stop", "too_far_from_source"),
        (f"{NEAR} {FAR}"[:300], "stop", "too_far_from_source"),  # half of it made up
    ],
)
@pytest.mark.parametrize("otherwise", ["keep_source", "drop"])
def test_a_rewrite_that_cannot_be_used_says_why(reply: str, finish_reason: str, reason: str, otherwise: str) -> None:
    recipe = RewriteRecipe(otherwise=otherwise, min_grounded_share=0.6)  # type: ignore[arg-type]
    row = rewrite(reply, finish_reason, recipe)
    assert row["rewrite_reason"] == reason
    kept = otherwise == "keep_source"
    assert row["drop_reason"] == (None if kept else reason)
    assert (row["instruction"], row["response"]) == ((INSTRUCTION, SOURCE) if kept else ("", ""))
    assert row["original"] == (SOURCE if kept else "")
    assert (reason in FAILED) == (reason in (*NO_REPLY.values(), "unfinished_rewrite", "empty_rewrite"))


def test_reasoning_is_stripped_and_numbers_may_be_allowed() -> None:
    row = rewrite(f"<think>Keep the year 1820; 3 sentences.</think>\n\n{NEAR}")
    assert (row["response"], row["rewrite_reason"]) == (NEAR, None)
    wide = f"{NEAR} It is 12 m wide."
    assert rewrite(wide, recipe=RewriteRecipe(max_new_numbers=1))["rewrite_reason"] is None
    assert rewrite(wide, recipe=RewriteRecipe(max_new_numbers=None))["rewrite_reason"] is None


def test_a_rewrite_in_a_script_without_spaces_is_measured_by_its_characters() -> None:
    source = "欢迎回到我的主页！堰是横跨河流修建的低矮水坝，用来抬高上游的水位。水从堰顶流过，然后继续流向下游。"
    near = "堰是一种横跨河流修建的低矮水坝，可以抬高上游的水位。水会从堰顶流过，再继续流向下游。"
    far = "做酸面包需要面粉、盐和耐心，还要有一份在温暖处放置几个小时后体积翻倍的酵头，面包师都会细心照看它。"
    assert rewrite(near, source=source)["rewrite_reason"] is None
    assert rewrite(far, source=source)["rewrite_reason"] == "too_far_from_source"


def test_a_source_that_sounds_like_a_refusal_may_be_rewritten() -> None:
    source = (
        "I am a language model trained by a museum, and I tell visitors about weirs, sluices, mills and their millers."
    )
    assert rewrite(source, source=source)["rewrite_reason"] is None


@pytest.mark.parametrize(
    ("text", "by", "share"),
    [
        ("River Water, river water", "the WATER of a river", 1.0),
        ("built in 1820", "built in 1821", 0.5),
        ("weir dams", "weirs", 0.0),
        ("a b c", "x", 1.0),
    ],
)
def test_words_of_four_letters_and_numbers_are_compared(text: str, by: str, share: float) -> None:
    assert covered(text, by) == share


def test_the_rewriter_is_asked_in_the_chosen_layout_and_samples_by_the_row() -> None:
    chat = ChatRecipe()
    asked, raw = (
        rewrite_request(pair(), RewriteRecipe(layout=layout, tags="none"), chat) for layout in ("chat", "raw")
    )
    assert asked.prompt == chat.forward_prompt(raw.prompt, "none")
    assert SOURCE in raw.prompt
    assert asked.seed == raw.seed != rewrite_request(pair("b"), RewriteRecipe(), chat).seed
    assert rewrite_request(pair(), RewriteRecipe(seed=1), chat).seed != asked.seed
    own = rewrite_request(pair(), RewriteRecipe(layout="own"), chat).prompt
    assert isinstance(own, UserMessage)
    assert own == raw.prompt


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "Rewrite {response}"}, r"lacks \{instruction\}"),
        ({"min_length_ratio": 3.0}, "min_length_ratio 3 is more than max_length_ratio 2"),
    ],
)
def test_recipes_that_cannot_work_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewriteRecipe(**values)


@pytest.fixture(scope="module")
def config(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a finished seed, corpus and models, whose engines are all `echo`."""
    folder = tmp_path_factory.mktemp("rewrite")
    path = prepare(folder, 60)
    shutil.copytree(folder / "base", folder / "rewriter")
    values = yaml.safe_load(path.read_text())
    echo = {"recipe": {"engine": {"kind": "echo"}}, "placement": {"rows_per_shard": 10, "cpus_per_replica": 0.5}}
    rate = {**echo["recipe"], "rounds": [{"threshold": 1}], "canaries": False}
    values |= {"augment": echo, "curate": {**echo, "recipe": rate}}
    recipe = {**echo["recipe"], "min_length_ratio": 0.0, "min_source_share": 0.0, "min_grounded_share": 0.3}
    values["rewrite"] = {**echo, "model": str(folder / "rewriter"), "recipe": recipe}
    path.write_text(yaml.safe_dump(values))
    return path


def run_to(name: str, config: Path, *overrides: str) -> dict[str, Manifest]:
    made = {}
    for manifest in pipeline.stages(Run(load(RunConfig, config, overrides))):
        made[manifest.stage] = manifest
        if manifest.stage == name:
            return made
    raise AssertionError(f"{name} was not run: {list(made)}")


@pytest.fixture(scope="module")
def made(config: Path) -> dict[str, Manifest]:
    return run_to("round-1/rewritten", config)


@pytest.mark.ray
def test_a_run_with_a_rewriter_rewrites_each_round_between_selection_and_training(
    config: Path, made: dict[str, Manifest]
) -> None:
    curated, found = made["round-1/curated"], made["round-1/rewritten"]
    assert found.rows == curated.kept > 20
    assert len(found.commits) > 1
    rows = {row["id"]: row for table in found.tables() for row in table.to_pylist()}
    sources = {row["id"]: row["response"] for table in curated.tables() for row in table.to_pylist()}
    assert {i: row["original"] for i, row in rows.items()} == sources
    used = [row for row in rows.values() if row["rewrite_reason"] is None]
    assert 0 < len(used) < len(rows)
    assert all(row["response"] != row["original"] for row in used)
    reasons = rewrite_reasons(found)
    assert reasons.total() == len(rows) - len(used)
    assert f"{len(used)} rewritten; kept as they were: " in funnel(made)[-1].note
    root = str(config.parent / "run")
    assert f"each of {curated.kept} ids from curated has one fate" in list(verify(root))[-1]
    stages = [stage.name for stage in status(root).stages]
    assert stages[stages.index("round-1/curated") :][:2] == ["round-1/curated", "round-1/rewritten"]
    recorded = storage.read_bytes(f"{root}/run.json").decode()
    assert '"rewriter"' in recorded
    assert str(config.parent / "rewriter") not in recorded
    assert run_to("round-1/rewritten", config)["round-1/rewritten"].ended == found.ended


@pytest.mark.ray
def test_too_many_failed_rewrites_stop_the_run_before_training(config: Path, made: dict[str, Manifest]) -> None:
    """In its own root, with the pairs of the other run."""
    other, curated = config.parent / "tight", made["round-1/curated"]
    tight = [f"root={other}", "rewrite.recipe.engine={kind: echo, max_context_tokens: 5}"]
    tight += [f"reuse.{name}={made[name].uri}" for name in ("candidates", "round-1/scores", "round-1/curated")]
    with pytest.raises(StageFailed, match=r"rewrites failed .*prompt_too_long.*max_failed_share = 0.2"):
        run_to("round-1/rewritten", config, *tight)
    found = run_to("round-1/rewritten", config, *tight, "rewrite.recipe.max_failed_share=1.0")["round-1/rewritten"]
    assert rewrite_reasons(found) == {"prompt_too_long": curated.kept}


@pytest.mark.ray
def test_another_rewriter_is_refused(config: Path, made: dict[str, Manifest]) -> None:
    with pytest.raises(ConfigError, match=r"rewrite\.model: .*elsewhere"):
        run_to("round-1/rewritten", config, "rewrite.model=elsewhere")
    (config.parent / "rewriter/model.safetensors").write_bytes(b"other!!!")
    with pytest.raises(ConfigError, match=r"rewritten was made with inputs\.rewriter"):
        run_to("round-1/rewritten", config)


def test_without_a_model_the_stage_does_not_exist(tmp_path: Path) -> None:
    demo = Path(__file__).parents[1] / "configs/demo.yaml"
    plain = load(RunConfig, demo, [f"root={tmp_path}"])
    assert not any("rewritten" in name for name in Graph(plain).nodes)
    with_model = load(RunConfig, demo, [f"root={tmp_path}", "rewrite.model=somewhere"])
    assert [name for name in Graph(with_model).nodes if "rewritten" in name] == [
        "round-1/rewritten",
        "round-2/rewritten",
    ]
