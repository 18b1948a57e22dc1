"""A pilot takes the right share, and shares nothing with the run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.config import ConfigError, load
from humpback_ray.corpus.build import CorpusConfig, sampled
from humpback_ray.corpus.segments import NOT_SAMPLED, Segmenter, SegmentRecipe
from humpback_ray.operate.pilot import STEPS, as_pilot
from humpback_ray.runconfig import RunConfig
from humpback_ray.storage import InputFile, find
from humpback_ray.storage.inventory import Inventory

DEMO = Path(__file__).parents[2] / "configs/demo.yaml"


def files(count: int, size: int = 1000) -> Inventory:
    return Inventory(tuple(InputFile(f"/web/{n}", f"{n}.jsonl", size, str(n)) for n in range(count)))


@pytest.mark.parametrize(("count", "share", "taken", "documents"), [
    (1000, 0.01, 10, 1.0), (1000, 0.0005, 1, 0.5), (1, 0.001, 1, 0.001), (3, 0.5, 2, 0.75), (7, 1.0, 7, 1.0),
])  # fmt: skip
def test_files_are_chosen_by_hash_and_surplus_documents_are_left_out(
    count: int, share: float, taken: int, documents: float
) -> None:
    config, chosen = sampled(CorpusConfig(), files(count), share)
    assert len(chosen.files) == taken
    assert config.recipe.segments.sample_share == pytest.approx(documents)
    other_order = sampled(CorpusConfig(), Inventory(files(count).files[::-1]), share)[1]
    assert set(chosen.files) == set(other_order.files)
    assert count < 1000 or chosen.files != files(count).files[:taken], "not the first ones"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), min_size=1, max_size=12), st.floats(0.001, 1))
def test_files_of_two_patterns_that_are_called_the_same_count_each(named: list[tuple[str, int]], share: float) -> None:
    there = tuple(InputFile(f"/{number}/{name}", name, size, "v") for number, (name, size) in enumerate(named))
    config, chosen = sampled(CorpusConfig(), Inventory(there), share)
    wanted, taken = share * sum(file.bytes for file in there), sum(file.bytes for file in chosen.files)
    assert taken >= wanted * (1 - 1e-9)
    assert taken - max(file.bytes for file in chosen.files) <= wanted, "one file fewer would be enough"
    assert config.recipe.segments.sample_share == pytest.approx(wanted / taken if taken else 0)


def test_a_documents_chance_is_its_own_and_what_is_left_out_has_a_row(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    path.write_text("".join(f'{{"text": "Text number {n}. {"Words follow. " * 60}"}}\n' for n in range(400)))
    fates = {}
    for share in (None, 0.25, 0.5):
        table = Segmenter(SegmentRecipe(sample_share=share))(*find(str(path)))
        assert len(set(table["document_id"].to_pylist())) == 400
        fates[share] = {row["document_id"]: row["drop_reason"] for row in table.to_pylist()}
    kept = {share: {key for key, reason in found.items() if reason != NOT_SAMPLED} for share, found in fates.items()}
    assert len(kept[None]) == 400
    assert 70 < len(kept[0.25]) < 130
    assert 160 < len(kept[0.5]) < 240
    assert kept[0.25] < kept[0.5], "a larger pilot holds the smaller one"


def test_without_a_pilot_a_segments_identity_is_what_it_was() -> None:
    assert "sample_share" not in SegmentRecipe().identity()
    assert SegmentRecipe(sample_share=0.5).identity()["sample_share"] == 0.5


def test_a_pilot_lies_beside_the_run_takes_few_steps_and_forgives_models_that_learned_nothing() -> None:
    changes = ["root=out/x/", "pilot=0.1", "train.recipe.joint=false", "corpus.recipe.min_kept=500"]
    config = as_pilot(load(RunConfig, DEMO, changes))
    assert config.corpus.recipe.min_kept == 1
    assert config.root == "out/x-pilot"
    assert config.train.recipe.steps == dict.fromkeys(("backward", "m0", "m1", "m2"), STEPS)
    assert config.train.recipe.joint, "a round may keep no pair"
    assert config.augment.recipe.max_failed_share == config.curate.recipe.max_failed_share == 1
    assert [rule.min_kept for rule in config.curate.recipe.rounds] == [0, 0]


def test_a_pilot_of_a_finished_corpus_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"reuse\.corpus is a finished stage; remove it from reuse"):
        as_pilot(load(RunConfig, DEMO, ["pilot=0.1", "reuse.corpus=/elsewhere/corpus"]))


def test_a_share_is_a_share() -> None:
    with pytest.raises(ConfigError, match="pilot"):
        load(RunConfig, DEMO, ["pilot=2"])
