"""The real engine in a real stage: a prompt beyond its context and one at which it raises each drop one row."""

from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray.augment import AugmentConfig, AugmentRecipe, make_candidates
from humpback_ray.curate.rounds import CurateConfig, CurateRecipe, make_scores
from humpback_ray.curate.scorers import RubricExpected
from humpback_ray.engines import TransformersEngine
from humpback_ray.operate.verify import verify_stage
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe, TurnFormat, encode
from humpback_ray.records import CANDIDATE, QUARANTINED, SEGMENT
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter, upload_files
from humpback_ray.stages.stage import Place, Stage
from tests.engines.tiny import save_model

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROWS, LONG, POISON = 8, 2, 5
"""Number of rows, and the indices of the two that the engine cannot take."""
CHAT = ChatRecipe(backward=TurnFormat(opening="", turn="\n"))
PLACEMENT = PoolPlacement(max_attempts=1, batch_rows=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose last token has no embedding, as if only its tokenizer had been extended."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_model(tmp_path_factory.mktemp("model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = len(AutoTokenizer.from_pretrained(folder))
    model.resize_token_embeddings(tokens - 1).requires_grad_(False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(folder: Path) -> list[str]:
    """Return a text per row; one is longer than the context, and one has the token without an embedding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    last = len(tokenizer) - 1
    found = [f"{i} 0 {i}" for i in range(ROWS)]
    found[LONG] *= 200
    found[POISON] += tokenizer.decode([last])
    assert [last in encode(tokenizer, text) for text in found] == [place == POISON for place in range(ROWS)]
    return found


def place(folder: Path, name: str) -> Place:
    return Place(name, str(folder / name), "first")


def table_of(texts: list[str], schema: pa.Schema) -> pa.Table:
    rows = [{"id": f"r{i}", "url": "", "text": text, "instruction": "0", "response": text, "finish_reason": "stop"}
            for i, text in enumerate(texts)]  # fmt: skip
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


@pytest.mark.parametrize("stage", ["candidates", pytest.param("scores", marks=pytest.mark.chaos)])
def test_a_prompt_that_the_engine_cannot_take_drops_one_row(
    local_ray: None, tmp_path: Path, folder: Path, texts: list[str], stage: str
) -> None:
    source, schema = ("corpus", SEGMENT) if stage == "candidates" else ("candidates", CANDIDATE)

    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, schema)
        writer.write(table_of(texts, schema))
        return writer.commit()

    def write_model(attempt: Attempt) -> Commit:
        return attempt.describe(upload_files(attempt, folder), {}, extra={"model": attempt.directory})

    model = Model.of(Stage(place(tmp_path, "model"), {}, {}).leased(write_model))
    given = Stage(place(tmp_path, source), {}, {}, schema).leased(write)
    done = candidates_of(given, model, tmp_path) if stage == "candidates" else scores_of(given, model, tmp_path)
    fates = {row["id"]: row["drop_reason"] for table in done.tables(kept=False) for row in table.to_pylist()}
    assert fates.pop(f"r{LONG}") == "prompt_too_long"
    assert fates.pop(f"r{POISON}") == QUARANTINED
    assert QUARANTINED not in fates.values()
    assert "prompt_too_long" not in fates.values()
    assert len(fates) == ROWS - 2
    (lost,) = done.quarantine().to_pylist()
    assert "out of range" in lost["error"]
    assert done.agreed["dtype"] in ("float32", "bfloat16")
    verify_stage(done)


def candidates_of(given: Manifest, model: Model, folder: Path) -> Manifest:
    recipe = AugmentRecipe(engine=TransformersEngine(), max_new_tokens=4, temperature=0, max_failed_share=1)
    config = AugmentConfig(recipe=recipe, placement=PLACEMENT)
    return make_candidates(config, CHAT, given, model, place(folder, "candidates"))


def scores_of(given: Manifest, model: Model, folder: Path) -> Manifest:
    scorer = RubricExpected(prompt="{instruction}\n{response}\n", layout="raw")
    recipe = CurateRecipe(engine=TransformersEngine(), scorer=scorer, max_failed_share=1)
    config = CurateConfig(recipe=recipe, placement=PLACEMENT, select_placement=TaskPlacement(cpus=0.5))
    return make_scores(config, CHAT, given, model, place(folder, "scores"))
