import asyncio
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray.config import ConfigError
from humpback_ray.engines import Completion, EchoEngine
from humpback_ray.evaluate.respond import (
    PROMPT,
    EvaluateRecipe,
    Responder,
    alpaca_outputs,
    answer_request,
    load_prompts,
    read_prompts,
    responses,
)
from humpback_ray.placement import Resources
from humpback_ray.prompts.chat import ChatRecipe, Layout
from humpback_ray.records import RESPONSE
from humpback_ray.storage import find

FASTCHAT = {"question_id": 7, "category": "generic", "turns": ["What is a weir?", "And a sluice?"]}
ALPACA = {"instruction": "Name a river.", "output": "Thames", "generator": "x", "dataset": "koala"}


def prompts_of(*records: object) -> pa.Table:
    return read_prompts(io.BytesIO("\n".join(json.dumps(record) for record in records).encode()), "mine")


def test_three_forms_of_prompts_are_read() -> None:
    table = prompts_of(FASTCHAT, ALPACA, {"instruction": "Translate.", "input": "Bonjour"})
    assert table.schema == PROMPT
    assert table["instruction"].to_pylist() == ["What is a weir?", "Name a river.", "Translate.\n\nBonjour"]
    assert table["dataset"].to_pylist() == ["mine", "koala", "mine"]


def test_an_array_reads_like_lines() -> None:
    lines = prompts_of(FASTCHAT, ALPACA)
    array = read_prompts(io.BytesIO(json.dumps([FASTCHAT, ALPACA], indent=1).encode()), "mine")
    assert array == lines


def test_ids_depend_on_content_and_a_repeated_prompt_has_its_own() -> None:
    first = prompts_of(FASTCHAT, ALPACA, ALPACA)["id"].to_pylist()
    again = prompts_of(ALPACA, FASTCHAT)["id"].to_pylist()
    assert len(set(first)) == 3
    assert again == [first[1], first[0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "mine holds no prompt"),
        (b"\n\n", "mine holds no prompt"),
        (b'{"instruction": "a"}\n{nope', "mine, line 2: not JSON"),
        (b'{"instruction": "a"}\n\n"b"', "mine, line 3: a str, not an object"),
        (b'{"question": "a"}', "mine, line 1: a prompt is"),
        (b'{"turns": []}', "mine, line 1: a prompt is"),
        (b'{"instruction": "  "}', "mine, line 1: a prompt is"),
        (b'[{"instruction": "a"}, {"instruction": 3}]', "mine, record 2: a prompt is"),
        (b"[1]", "mine, record 1: a int, not an object"),
    ],
)
def test_a_prompt_that_is_none_is_named(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompts(io.BytesIO(text), "mine")


def test_prompts_carry_both_tags_the_seeds_first() -> None:
    chat = ChatRecipe(forward=Layout(opening="Q: ", turn="\nA: "), seed_tag="S.", web_tag="W.")
    request = answer_request({"id": "p", "instruction": "Why?"}, EvaluateRecipe(), chat)
    assert request.prompt == "Q: Why? S. W.\nA: "
    assert (request.temperature, request.top_p) == (0.7, 0.9)


def test_answers_are_alpaca_evals_own_form_and_a_cut_one_counts() -> None:
    table = prompts_of(FASTCHAT, ALPACA, {"instruction": "long"})
    finished = [
        Completion("A low dam.", 9, 4, "stop"),
        Completion("The Tha", 9, 4, "length"),
        Completion("", 9, 0, "context"),
    ]
    answers = responses(table, finished)
    assert answers.schema == RESPONSE
    assert answers["drop_reason"].to_pylist() == [None, None, "prompt_too_long"]
    assert answers["instruction"].to_pylist()[2] == ""
    assert alpaca_outputs(answers, "humpback-m2") == [
        {"instruction": "What is a weir?", "output": "A low dam.", "generator": "humpback-m2", "dataset": "mine"},
        {"instruction": "Name a river.", "output": "The Tha", "generator": "humpback-m2", "dataset": "koala"},
    ]


def test_a_file_of_prompts_goes_through_the_actor(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": f"What is {i}?"}) for i in range(20)))
    recipe = EvaluateRecipe(engine=EchoEngine())
    responder = Responder(recipe, ChatRecipe(), "", Resources())
    answers = asyncio.run(responder(find(str(file))[0]))
    assert answers["id"].to_pylist() == load_prompts(find(str(file))[0])["id"].to_pylist()
    assert set(answers["dataset"].to_pylist()) == {"quiz"}
    assert all(answers["output"].to_pylist())
    assert asyncio.run(responder(load_prompts(find(str(file))[0]))) == answers


@pytest.mark.realdata
def test_the_eighty_vicuna_prompts_are_read(real_data: Path) -> None:
    table = load_prompts(find(str(real_data / "prompts" / "vicuna-80.jsonl"))[0])
    assert table.num_rows == 80
    assert len(set(table["id"].to_pylist())) == 80
    assert set(table["dataset"].to_pylist()) == {"vicuna-80"}
    assert table["instruction"][0].as_py() == "How can I improve my time management skills?"
