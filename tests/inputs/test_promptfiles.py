"""Prompts of the usual evaluations are read completely and byte for byte."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray.config import ConfigError
from humpback_ray.inputs.promptfiles import PROMPT, load_prompts, read_prompts
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
        (b'{"title": "t", "body": "b"}', "mine, line 1: a prompt is .* this record has the fields title, body"),
        (b'{"instruction": "a"}\n{"messages": [{"role": "assistant", "content": "a"}]}', "mine, line 2: a prompt is"),
        (b'{"instruction": {"a": 1}}', "mine, line 1: the prompt is not text"),
        ('{"instruction": "\u00e9"}'.encode("latin-1"), "mine, line 1: not UTF-8 text"),
        (gzip.compress(b'{"instruction": "a"}', mtime=0)[:-9], "mine, the file: archive truncated"),
        (b'{"turns": []}', "mine, line 1: a prompt is"),
        (b'{"instruction": "  "}', "mine, line 1: a prompt is"),
        (b'[{"instruction": "a"}, {"instruction": 3}]', "mine, record 2: a prompt is"),
        (b"[1]", "mine, record 1: a int, not an object"),
    ],
)
def test_a_record_that_is_not_a_prompt_is_named(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompts(io.BytesIO(text), "mine")


@pytest.mark.parametrize(
    ("record", "instruction"),
    [
        (
            {"id": "t", "instruction": "Sum up.", "instances": [{"input": "A text.", "output": "T"}]},
            "Sum up.\n\nA text.",
        ),
        ({"id": "task_1", "instruction": "Sing.", "instances": [{"input": "", "output": "La."}]}, "Sing."),
        (
            {"instruction": "Who?", "context": "She did.", "response": "She.", "category": "qa"},
            "Who?\n\nShe did.",
        ),
        ({"key": 1000, "prompt": "Write. ", "instruction_id_list": ["a:b"], "kwargs": [{"n": 1}]}, "Write. "),
        ({"prompt": "Name a river.", "id": "koala_1"}, "Name a river."),
        ({"conversations": ["Name a river."], "source": "lima"}, "Name a river."),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "Hi"}]}, "Hi"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, "Hi"),
        ({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello."}, "Hi"),
        ({"question_id": 1, "turns": [{"content": "Hi"}, {"content": "Bye"}]}, "Hi"),
        ({"question_id": 1, "text": "Hi", "category": "generic"}, "Hi"),
        ({"question": "Hi", "answer": "Hello."}, "Hi"),
    ],
)
def test_prompts_of_the_usual_evaluations_are_read_with_their_inputs(record: dict[str, Any], instruction: str) -> None:
    assert prompts_of(record)["instruction"].to_pylist() == [instruction]


def test_instructions_stay_byte_for_byte_in_any_encoding_and_compression() -> None:
    instructions = [" Name a river.", "Why?\n", "a\r\nb\t", "é “x” 😀", "Name a river."]
    records = [{"instruction": text, "dataset": "d"} for text in instructions]
    text = json.dumps(records, ensure_ascii=False, indent=1)
    for data in (text.encode(), text.encode("utf-16"), text.encode("utf-8-sig"), gzip.compress(text.encode())):
        table = read_prompts(io.BytesIO(data), "mine")
        assert table["instruction"].to_pylist() == instructions
        assert len(set(table["id"].to_pylist())) == 5
    assert prompts_of({"data": records})["instruction"].to_pylist() == instructions


@pytest.mark.realdata
def test_the_eighty_vicuna_prompts_are_read(real_data: Path) -> None:
    table = load_prompts(find(str(real_data / "prompts" / "vicuna-80.jsonl"))[0])
    assert table.num_rows == 80
    assert len(set(table["id"].to_pylist())) == 80
    assert set(table["dataset"].to_pylist()) == {"vicuna-80"}
    assert table["instruction"][0].as_py() == "How can I improve my time management skills?"
