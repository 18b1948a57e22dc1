"""All rules together: each kind has its reason, good instructions stay, and an omitted rule is off."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import get_args

import pytest

from humpback_ray.config import load
from humpback_ray.prompts.chat import ChatRecipe, TurnFormat
from humpback_ray.prompts.instructions import InstructionFilters, Reason, echoes_prompt
from humpback_ray.runconfig import RunConfig
from humpback_ray.sample.facts import BY_NOUN, worded
from humpback_ray.sample.texts import ASKED, statement
from humpback_ray.sample.world import WorldRecipe, truth_of
from humpback_ray.seed import SeedRecipe, seed_file
from tests.prompts.instructions import SEGMENT, rows, without

DEMO = Path(__file__).parents[3] / "configs/demo.yaml"
BAD, GOOD = rows("bad.jsonl"), rows("good.jsonl")


@pytest.mark.parametrize("row", BAD, ids=[f"{row['reason']}: {row['instruction'][:40]}" for row in BAD])
def test_a_bad_instruction_is_dropped_for_its_kind(row: dict[str, str]) -> None:
    assert InstructionFilters().reason(row["instruction"], SEGMENT, ChatRecipe()) == row["reason"]


def test_every_kind_has_instances_and_can_be_turned_off() -> None:
    kinds = {row["reason"] for row in BAD}
    assert kinds == set(get_args(Reason)) - {"echoed_prompt"}  # it depends on the layout
    for row in BAD:
        assert without(row["reason"]).reason(row["instruction"], SEGMENT, ChatRecipe()) != row["reason"]


@pytest.mark.parametrize("instruction", GOOD)
def test_a_good_instruction_stays(instruction: str) -> None:
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) is None


@pytest.mark.parametrize(
    "instruction",
    [
        "What is a weir?\n\n### The instruction that this text answers:\nWhat is a dam?",
        "### Instruction:\nExplain weirs.",
        "Explain weirs.\n\n  ### response: A weir is",
        "### Text:\nA weir is a low dam.",
        "Explain weirs. Answer in the style of an AI Assistant.",
        "Answer with knowledge\nfrom web search. What is a weir?",
    ],
)
def test_an_echo_of_the_layout_or_a_tag_is_detected(instruction: str) -> None:
    assert echoes_prompt(instruction, ChatRecipe())
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == "echoed_prompt"
    assert without("echoed_prompt").reason(instruction, SEGMENT, ChatRecipe()) != "echoed_prompt"


@pytest.mark.parametrize(
    "instruction",
    [
        "Write the heading `### Instruction:` of a prompt for me.",
        "Which of these is a weir?\nA: a dam\nB: a boat",
        "Answer in the style of a pirate: what is a weir?",
        "Find the instruction that this text answers best.",
    ],
)
def test_text_that_only_resembles_the_layout_stays(instruction: str) -> None:
    layout = TurnFormat(opening="Q: ", turn="\nA: ")
    assert not echoes_prompt(instruction, ChatRecipe(forward=layout))


def toy_pairs() -> Iterator[tuple[str, str]]:
    """Every question for every fact of the demo's world, with a statement of that fact."""
    rng, truth = Random(0), truth_of(WorldRecipe())
    for fact in truth.of("seed", "pool", "unseen", "common"):
        for question in BY_NOUN[fact.noun].questions:
            yield worded(question, fact.town), statement(fact, rng)


def test_no_question_of_the_toy_world_is_dropped() -> None:
    chat, filters = load(RunConfig, DEMO).chat, InstructionFilters()
    fates = [(question, filters.reason(question, text, chat)) for question, text in toy_pairs()]
    assert len(fates) > 4000
    assert [fate for fate in fates if fate[1]] == []
    long = " ".join(text for _, (_, text) in zip(range(40), toy_pairs(), strict=False))
    assert [question for question, _ in toy_pairs() if filters.reason(question, long, chat)] == []
    assert filters.reason(f"The flag shows a fox.\n{ASKED}", "", chat) == "echoed_prompt"


@pytest.mark.realdata
def test_instructions_that_people_wrote_stay(real_data: Path) -> None:
    with (real_data / "seed" / "oasst-en-100-trees.jsonl").open("rb") as stream:
        seeds = [row for row in seed_file(stream, "trees", SeedRecipe()).to_pylist() if row["drop_reason"] is None]
    vicuna = [json.loads(line) for line in (real_data / "prompts" / "vicuna-80.jsonl").open()]
    pairs = [(row["instruction"], row["response"]) for row in seeds] + [(row["turns"][0], SEGMENT) for row in vicuna]
    assert len(pairs) > 170
    fates = [(text, InstructionFilters().reason(text, segment, ChatRecipe())) for text, segment in pairs]
    assert [fate for fate in fates if fate[1]] == []
