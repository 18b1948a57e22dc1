"""A pair that holds an evaluation prompt is dropped; others are not."""

import io
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.config import ConfigError
from humpback_ray.inputs.contamination import CONTAMINATED, NOTHING, ContaminationRecipe, HeldOut, Overlap, plain_words
from humpback_ray.records import PAIR
from humpback_ray.seed import SeedRecipe, seed_file
from humpback_ray.storage.inventory import Hashes, Inventory, resolve

LONG = (
    "Write a polite letter to the harbor master of a small town, in which you ask whether a boat may stay in the "
    "basin over the winter, and what that costs."
)
SHORT = "Why does bread rise?"
CHINESE = "请写一封礼貌的信给小镇的港务长询问一艘船是否可以在港池里过冬以及费用是多少"


def overlap(*prompts: str, **recipe: object) -> Overlap:
    return Overlap(prompts or (LONG, SHORT, CHINESE), ContaminationRecipe.model_validate(recipe))


@pytest.mark.parametrize(
    "text",
    [
        SHORT,
        "  why does BREAD rise ?\n",
        "“Why does bread rise”",
        "Ｗｈｙ does bread rise？",
        "Why\u200b does\u00a0bread *rise*?",
        LONG,
        LONG.upper().replace(",", " --"),
        f"Hello! I need help. {LONG} Thank you.",
        "Please " + " ".join(LONG.split()[5:18]) + " soon",
        CHINESE,
        f"你好！{CHINESE[10:24]}。谢谢",
        "請問：" + CHINESE + "？",
    ],
)
def test_a_prompt_is_found_whole_and_a_long_one_by_thirteen_words(text: str) -> None:
    assert overlap().holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "Why does bread rise in an oven?",
        "He asked: why does bread rise? Nobody knew.",
        "Please " + " ".join(LONG.split()[5:17]) + " soon",
        CHINESE[10:23] + "谢谢你",
        "Write a polite letter to the mayor of a small town, in which you ask whether a dog may stay in the yard.",
    ],
)
def test_twelve_words_or_a_short_prompt_within_a_text_do_not_count(text: str) -> None:
    assert not overlap().holds(text)


def test_the_recipe_decides_about_length_and_responses() -> None:
    assert not overlap(ngram_words=None).holds(f"Hello! {LONG}")
    assert overlap(ngram_words=None).holds(LONG)
    assert overlap(ngram_words=4).holds("He asked: why does bread rise? Nobody knew.")
    page = f"Prompts that we tried: {LONG} The model wrote a letter."
    assert overlap().found_in("Which prompts were tried?", page)
    assert not overlap(responses=False).found_in("Which prompts were tried?", page)


def test_accents_marks_and_scripts_without_spaces_are_words() -> None:
    assert plain_words("Çа va, l’été_fin?") == ["çа", "va", "l", "été", "fin"]
    assert plain_words("A图书馆B は、") == ["a", "图书", "书馆", "b", "は"]
    assert plain_words("हिन्दी में") == ["हिन्दी", "में"]
    assert plain_words("É") == plain_words("E\u0301") == ["é"]


@given(st.data(), st.integers(2, 13))
def test_blocks_find_what_a_search_for_every_ngram_finds(data: st.DataObject, size: int) -> None:
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    prompts = [rng.choices("abc", k=rng.randrange(30)) for _ in range(3)]
    text = rng.choices("abc", k=40)
    cut = rng.randrange(20)
    text[cut:cut] = prompts[0][rng.randrange(5) :][: size + rng.randrange(-1, 3)]
    grams = {tuple(p[i : i + size]) for p in prompts for i in range(len(p) - size + 1)}
    expected = any(tuple(text[i : i + size]) in grams for i in range(len(text) - size + 1))
    assert overlap(*map(" ".join, prompts), ngram_words=size).holds(" ".join(text)) == expected


def pairs(*rows: tuple[str, str, str | None]) -> pa.Table:
    made = [
        {"id": str(n), "instruction": asked, "response": said, "source": "seed", "score": None, "drop_reason": reason}
        for n, (asked, said, reason) in enumerate(rows)
    ]
    return pa.Table.from_pylist(made, schema=PAIR)


def test_a_dropped_pair_keeps_its_id_and_its_first_reason_and_loses_its_texts() -> None:
    table = pairs((SHORT, "Yeast.", None), ("Who?", "She.", None), ("", "", "deleted"), ("Who?", LONG, None))
    found = overlap().without(table)
    assert found.schema == PAIR
    assert found["id"].to_pylist() == ["0", "1", "2", "3"]
    assert found["drop_reason"].to_pylist() == [CONTAMINATED, None, "deleted", CONTAMINATED]
    assert found["instruction"].to_pylist() == ["", "Who?", "", ""]
    assert found["response"].to_pylist() == ["", "She.", "", ""]
    assert NOTHING.overlap().without(table) is table


def inventory(folder: Path, **files: object) -> Inventory:
    for name, records in files.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    return resolve("x", [str(folder / f"{name}.json") for name in files], Hashes(str(folder / "hashes.json")))


def test_the_runs_own_prompts_and_named_files_count_together_and_enter_the_fingerprint(tmp_path: Path) -> None:
    own = inventory(tmp_path, own=[{"instruction": SHORT}])
    named = inventory(tmp_path, named=[{"turns": [LONG, "And then?"]}])
    both = HeldOut.of(ContaminationRecipe(), own, named)
    assert [file.name for file in both.inputs["held_out"].files] == ["named.json", "own.json"]
    assert both.identity["contamination"]["ngram_words"] == 13
    assert both.overlap().holds(SHORT)
    assert both.overlap().holds(LONG)
    without = HeldOut.of(ContaminationRecipe(own_prompts=False), own, named)
    assert not without.overlap().holds(SHORT)
    nothing = HeldOut.of(ContaminationRecipe(own_prompts=False), own, None)
    assert (nothing.identity, nothing.inputs, bool(nothing)) == ({}, {}, False)
    with pytest.raises(ConfigError, match=r"bad, record 1: a prompt is .* this record has the fields title"):
        HeldOut.of(ContaminationRecipe(), None, inventory(tmp_path, bad=[{"title": "t"}])).overlap()


SHARED_WITH_ALPACA_EVAL = {
    "330fc1cf-53dd-4d67-8201-2782df947dd5", "5103ab92-666b-45ef-b7f7-6a990a1c744c",
    "f7a53981-0bfd-4595-8ca2-bae2c3b64345", "c79045d6-a800-40f8-bfd7-5b078f19023f",
    "90632573-79ad-42f9-9b96-e09117985e21", "eb5ce270-2d63-40fb-9558-790d409ae16c",
}  # fmt: skip
"""Open Assistant's trees whose prompts are in AlpacaEval."""


@pytest.mark.realdata
def test_the_six_real_trees_that_are_prompts_of_alpaca_eval_are_dropped_and_no_others(real_data: Path) -> None:
    data = (real_data / "seed" / "oasst-en-100-trees.jsonl").read_bytes()
    trees = {tree["message_tree_id"]: tree for tree in map(json.loads, data.splitlines())}
    taken = [{"instruction": trees[name]["prompt"]["text"] + " \n"} for name in SHARED_WITH_ALPACA_EVAL]
    with (real_data / "prompts" / "vicuna-80.jsonl").open() as lines:
        others = [{"instruction": json.loads(line)["turns"][0]} for line in lines]
    prompts = [record["instruction"] for record in taken + others]
    table = overlap(*prompts).without(seed_file(io.BytesIO(data), "trees", SeedRecipe()))
    reasons = Counter(table["drop_reason"].to_pylist())
    assert reasons == {None: 88, CONTAMINATED: 6, "synthetic": 5, "no_rank_0_reply": 1}
