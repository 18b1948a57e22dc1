import asyncio
import io
import json
from pathlib import Path

import pyarrow as pa

from humpback_ray.engines import Completion, EchoEngine
from humpback_ray.evaluate.respond import EvaluateRecipe, Responder, alpaca_outputs, answer_request, responses
from humpback_ray.inputs.promptfiles import load_prompts, read_prompts
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe, TurnFormat
from humpback_ray.records import RESPONSE
from humpback_ray.storage import find

FASTCHAT = {"question_id": 7, "category": "generic", "turns": ["What is a weir?", "And a sluice?"]}
ALPACA = {"instruction": "Name a river.", "output": "Thames", "generator": "x", "dataset": "koala"}


def prompts_of(*records: object) -> pa.Table:
    return read_prompts(io.BytesIO("\n".join(json.dumps(record) for record in records).encode()), "mine")


def test_prompts_carry_both_tags_the_seeds_first() -> None:
    chat = ChatRecipe(forward=TurnFormat(opening="Q: ", turn="\nA: "), seed_tag="S.", web_tag="W.")
    request = answer_request({"id": "p", "instruction": "Why?"}, EvaluateRecipe(), chat)
    assert request.prompt == "Q: Why? S. W.\nA: "
    assert (request.temperature, request.top_p) == (0.7, 0.9)


def test_an_answer_that_could_not_be_computed_is_dropped_with_its_reason() -> None:
    answers = responses(prompts_of(ALPACA), [Completion("", 9, 1, "not_finite")])
    assert (answers["drop_reason"].to_pylist(), answers["output"].to_pylist()) == (["logits_not_finite"], [""])


def test_answers_are_in_alpaca_evals_own_format_and_a_cut_one_counts() -> None:
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
    assert alpaca_outputs([table], [answers], "humpback-m2") == [
        {"instruction": "What is a weir?", "output": "A low dam.", "generator": "humpback-m2", "dataset": "mine"},
        {"instruction": "Name a river.", "output": "The Tha", "generator": "humpback-m2", "dataset": "koala"},
        {"instruction": "long", "output": "", "generator": "humpback-m2", "dataset": "mine"},
    ]


def test_every_prompt_has_one_entry_byte_for_byte_in_file_order_with_or_without_an_answer() -> None:
    said = [" Name a river.\n", "Why?", "Why?", "Who?"]
    table = prompts_of(*({"instruction": text} for text in said))
    answers = responses(table, [Completion(f"answer {n}", 9, 4, "stop") for n in range(4)])
    shuffled = [answers.slice(2, 1), answers.slice(0, 2)]  # the last one is in quarantine
    outputs = alpaca_outputs([table.slice(0, 3), table.slice(3)], shuffled, "m")
    assert [entry["instruction"] for entry in outputs] == said
    assert [entry["output"] for entry in outputs] == ["answer 0", "answer 1", "answer 2", ""]
    assert answer_request(table.to_pylist()[0], EvaluateRecipe(), ChatRecipe()).prompt == (
        ChatRecipe().forward_prompt("Name a river.", "both")
    )


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
