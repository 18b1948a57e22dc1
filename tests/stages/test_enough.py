"""Inputs that give too few rows end the job at once, with one line that says what was read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray.config import ConfigError, load
from humpback_ray.corpus.build import CorpusConfig, CorpusRecipe, make_corpus, make_segments
from humpback_ray.inputs.contamination import ContaminationRecipe, HeldOut
from humpback_ray.operate.verify import verify_stage
from humpback_ray.placement import PoolPlacement
from humpback_ray.records import SEGMENT
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig
from humpback_ray.seed import SeedConfig, SeedRecipe, make_seed
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.enough import frequent, keys_in
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Drift, Place, Stage
from humpback_ray.storage.inventory import Hashes, Inventory, resolve

DEMO = Path(__file__).parents[2] / "configs/demo.yaml"


def inventory(folder: Path, name: str, records: list[Any]) -> Inventory:
    (folder / name).write_text("\n".join(map(json.dumps, records)))
    return resolve("inputs", [str(folder / name)], Hashes(str(folder / "hashes.json")))


def test_the_most_frequent_fields_and_those_of_a_files_first_records_are_named(tmp_path: Path) -> None:
    assert frequent({"a, b": 2, "c": 1_000, "d": 1, "e": 1}) == "(c) in 1,000; (a, b) in 2; (d) in 1"
    files = inventory(tmp_path, "a.jsonl", [{"title": "t", "body": "b"}] * 150 + [{"never": "seen"}])
    assert keys_in(files.files) == "(title, body) in 100 of the first records of a.jsonl"
    assert keys_in(inventory(tmp_path, "a.warc", [1]).files) == ""


@pytest.mark.ray
def test_a_seed_that_fits_no_form_ends_the_job_and_its_fields_are_named(tmp_path: Path, local_ray: None) -> None:
    files = inventory(
        tmp_path, "seed.jsonl", [{"title": str(n), "body": "b"} for n in range(49)] + [{"instruction": ""}]
    )
    place = Place("seed", str(tmp_path / "seed"), "s")
    words = (
        r"seed: 0 of 50 rows were kept, fewer than seed\.recipe\.min_kept = 1; dropped: no_pair 50; keys seen: "
        r"\(title, body\) in 49; \(instruction\) in 1; [^\n]*$"
    )
    for _ in range(2):  # the second time, the stage already exists
        with pytest.raises(StageFailed, match=words):
            make_seed(SeedConfig(), files, place)
    assert make_seed(SeedConfig(recipe=SeedRecipe(min_kept=0)), files, place).rows == 50


@pytest.mark.ray
def test_seed_pairs_that_hold_a_prompt_are_counted_and_other_prompts_are_drift(tmp_path: Path, local_ray: None) -> None:
    files = inventory(
        tmp_path, "seed.jsonl", [{"prompt": f"Who was number {n}?", "completion": "She."} for n in range(9)]
    )
    place = Place("seed", str(tmp_path / "seed"), "s")
    prompts = inventory(tmp_path, "prompts.jsonl", [{"instruction": "Who was NUMBER 3"}])
    held_out = HeldOut.of(ContaminationRecipe(), prompts, None)
    made = make_seed(SeedConfig(), files, place, held_out)
    assert (made.kept, made.drops) == (8, {"contaminated": 1})
    assert "the same 9 rows" in verify_stage(made)
    others = inventory(tmp_path, "prompts.jsonl", [{"instruction": "Who was NUMBER 4"}])
    with pytest.raises(Drift, match=r"inputs\.held_out"):
        make_seed(SeedConfig(), files, place, HeldOut.of(ContaminationRecipe(), others, None))
    with pytest.raises(Drift, match=r"recipe\.contamination\.ngram_words"):
        make_seed(SeedConfig(), files, place, HeldOut.of(ContaminationRecipe(ngram_words=8), prompts, None))
    with pytest.raises(
        StageFailed, match=r"fewer than seed\.recipe\.min_kept = 9; dropped: contaminated 1; use other inputs"
    ):
        make_seed(SeedConfig(recipe=SeedRecipe(min_kept=9)), files, place, held_out)


@pytest.mark.ray
def test_a_corpus_of_other_fields_ends_the_job_and_names_them(tmp_path: Path, local_ray: None) -> None:
    pages = [{"raw_content": "Text.", "url": f"http://x/{n}"} for n in range(5)]
    files = inventory(tmp_path, "pages.jsonl", pages)
    config = CorpusConfig(placement=PoolPlacement(cpus_per_replica=0.5))
    words = r"segments: 0 of 5 rows were kept, fewer than corpus\.recipe\.min_kept = 1; dropped: empty 5; keys seen: "
    with pytest.raises(StageFailed, match=words + r"\(raw_content, url\) in 5"):
        make_segments(config, files, Place("segments", str(tmp_path / "segments"), "s"))


@pytest.mark.ray
def test_a_corpus_of_duplicates_alone_ends_the_job(tmp_path: Path, local_ray: None) -> None:
    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, SEGMENT)
        writer.write(pa.Table.from_pylist([{"id": str(n), "text": "T", "text_hash": "h"} for n in range(2)], SEGMENT))
        return writer.commit()

    segments = Stage(Place("segments", str(tmp_path / "segments"), "s"), {}, {}, SEGMENT).leased(write)
    config = CorpusConfig(recipe=CorpusRecipe(min_kept=2))
    with pytest.raises(
        StageFailed, match=r"corpus: 1 of 2 rows .*min_kept = 2; dropped: exact_duplicate 1; use other inputs"
    ):
        make_corpus(config, segments, Place("corpus", str(tmp_path / "corpus"), "s"))
    with pytest.raises(StageFailed, match=r"segments: 2 of 2 rows .*min_kept = 3; dropped: nothing; use other inputs"):
        make_corpus(CorpusConfig(recipe=CorpusRecipe(min_kept=3)), segments, Place("corpus", str(tmp_path / "c"), "s"))


def test_too_few_prompts_end_the_job_before_anything_is_made(tmp_path: Path) -> None:
    inventory(tmp_path, "prompts.jsonl", [{"prompt": "Who?"}, {"prompt": "Why?"}])
    given = [f"root={tmp_path}/run", f"evaluate.recipe.inputs=[{tmp_path}/prompts.jsonl]"]
    assert Run(load(RunConfig, DEMO, [*given, "evaluate.recipe.min_kept=2"])).inputs["evaluate"]
    with pytest.raises(StageFailed, match=r"2 prompts are fewer than evaluate\.recipe\.min_kept = 3"):
        Run(load(RunConfig, DEMO, [*given, "evaluate.recipe.min_kept=3"]))


def test_prompts_that_are_named_in_the_configuration_are_read_before_anything_is_made(tmp_path: Path) -> None:
    inventory(tmp_path, "bench.jsonl", [{"title": "t"}])
    with pytest.raises(ConfigError, match=r"bench, line 1: a prompt is .* the fields title"):
        Run(load(RunConfig, DEMO, [f"root={tmp_path}/run", f"contamination.recipe.inputs=[{tmp_path}/bench.jsonl]"]))
    inventory(tmp_path, "good.jsonl", [{"turns": ["Who?"]}])
    run = Run(load(RunConfig, DEMO, [f"root={tmp_path}/run", f"contamination.recipe.inputs=[{tmp_path}/good.jsonl]"]))
    assert str(tmp_path) not in json.dumps(run.config.recipes())
    assert [file.name for file in run.inputs["contamination"].files] == ["good.jsonl"]
