"""Answers of a trained model to a file of prompts, in the form that AlpacaEval's own tool reads.

Instructions carry both source tags, the seed's first (Li et al. 2023, arXiv:2308.06259, section 2.3: both together
won more than either). Prompts come as JSON lines or one JSON array: `{"instruction": ...}` (AlpacaEval; an `input` is
put below the instruction) or `{"turns": [...]}` (FastChat; first turn alone).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config, ConfigError
from humpback_ray.engines import Completion, EngineConfig, Request, TransformersEngine, generate_all
from humpback_ray.placement import Resources
from humpback_ray.prompts.chat import ChatRecipe, Tags
from humpback_ray.records import RESPONSE, record_id, seed_of

PROMPT = pa.schema(
    [
        ("id", pa.string()),  # hash of the prompt's own id, its dataset and its text
        ("instruction", pa.string()),
        ("dataset", pa.string()),  # the record's own, else the name of its file
        ("drop_reason", pa.string()),  # always null: a file that holds something else than prompts is refused whole
    ]
)


class EvaluateRecipe(Config):
    """Which prompts are answered, and how. Hashed into the answers."""

    version: int = Field(default=1, ge=1)
    """Raised by hand when the meaning of the answers changes."""

    inputs: list[str] | None = None
    """Files of prompts, JSON or JSON lines: paths, globs, `s3://` URIs. None: the sample's, or nothing is answered."""

    engine: EngineConfig = TransformersEngine()
    """Who runs the models; `kind` selects the class."""

    temperature: float = Field(default=0.7, ge=0)
    """Section 3.1's generation setting; 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus, same place."""

    tags: Tags = "both"
    """Source tags of the instructions: both, S_a then S_w, is the paper's inference; the others are its ablation."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Cap on an answer, in tokens; not reported, ours. A longer answer is cut and says so (`finish_reason`)."""

    seed: int = 0
    """Another seed draws other answers."""


class Responder:
    """One actor: an engine with the model under test, loaded once, around the pure function `responses`."""

    def __init__(
        self, recipe: EvaluateRecipe, chat: ChatRecipe, model: "str | storage.Directory", resources: Resources
    ) -> None:
        self.recipe, self.chat = recipe, chat
        self.engine = recipe.engine.build(model, resources)

    async def __call__(self, prompts: "storage.InputFile | pa.Table") -> pa.Table:
        """Answer the prompts of a file or of a table of PROMPT; every id leaves once."""
        table = load_prompts(prompts) if isinstance(prompts, storage.InputFile) else prompts
        requests = [answer_request(row, self.recipe, self.chat) for row in table.to_pylist()]
        return responses(table, await generate_all(self.engine, requests))


def load_prompts(file: storage.InputFile, seen: Counter[tuple[str, ...]] | None = None) -> pa.Table:
    """Read a prompt file from storage; its dataset is named after it (`vicuna-80.jsonl`: "vicuna-80")."""
    with storage.reading(file) as stream:
        return read_prompts(stream, PurePosixPath(file.uri).name.split(".")[0], seen)


def read_prompts(stream: BinaryIO, name: str, seen: Counter[tuple[str, ...]] | None = None) -> pa.Table:
    """Read prompts in AlpacaEval's or FastChat's form.

    Args:
        stream: JSON lines, or one JSON array.
        name: the dataset of records that name none.
        seen: prompts of other files, with how often they came; this file's are added.

    Returns:
        A table of PROMPT, in the file's order. A prompt that occurs again is another row with its own id.

    Raises:
        ConfigError: a record that is no JSON object or holds no instruction, or no record at all; says which.
    """
    rows, seen = [], Counter() if seen is None else seen
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is not UTF-8 text ({error}); prompts are JSON or JSON lines, not compressed"
        ) from error
    for place, record in _records(text, name):
        instruction = _instruction(record).encode("utf-8", "replace").decode()
        if not instruction:
            raise ConfigError(f"{name}, {place}: a prompt is {{'instruction': text}} or {{'turns': [text]}}")
        dataset = str(record.get("dataset") or name)
        key = (str(record.get("question_id", record.get("id", ""))), dataset, instruction)
        rows.append({"id": record_id(*key, seen[key]), "instruction": instruction, "dataset": dataset})
        seen[key] += 1
    if not rows:
        raise ConfigError(f"{name} holds no prompt")
    return pa.Table.from_pylist(rows, schema=PROMPT)


def _records(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if text.lstrip().startswith("["):
        texts = [("the array", text)]
    else:
        texts = [(f"line {i}", line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for place, part in texts:
        try:
            value = json.loads(part)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name}, {place}: not JSON ({error})") from error
        for number, record in enumerate(value if isinstance(value, list) else [value], start=1):
            where = f"record {number}" if isinstance(value, list) else place
            if not isinstance(record, dict):
                raise ConfigError(f"{name}, {where}: a {type(record).__name__}, not an object")
            yield where, record


def _instruction(record: Mapping[str, Any]) -> str:
    turns = record.get("turns")
    said = turns[0] if isinstance(turns, list) and turns else record.get("instruction")
    if not isinstance(said, str):
        return ""
    below = record.get("input")
    return f"{said}\n\n{below}".strip() if isinstance(below, str) and below.strip() else said.strip()


def answer_request(row: Mapping[str, Any], recipe: EvaluateRecipe, chat: ChatRecipe) -> Request:
    """Ask a model one prompt (`id`, `instruction`), with the recipe's tags."""
    return Request(
        chat.forward_prompt(row["instruction"], recipe.tags),
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=seed_of(row["id"], "evaluate", recipe.seed),
    )


def responses(prompts: pa.Table, completions: Sequence[Completion]) -> pa.Table:
    """Pair every prompt with its answer; one that does not fit the model's context is dropped as `prompt_too_long`.

    Returns:
        A row of RESPONSE for each row of PROMPT. An answer cut at its limit is kept, as the judge should see it.
    """
    rows = []
    for prompt, completion in zip(prompts.to_pylist(), completions, strict=True):
        reason = "prompt_too_long" if completion.finish_reason == "context" else None
        rows.append(
            {
                "id": prompt["id"],
                "instruction": "" if reason else prompt["instruction"],
                "output": "" if reason else completion.text,
                "dataset": prompt["dataset"],
                "finish_reason": completion.finish_reason,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
                "drop_reason": reason,
            }
        )
    return pa.Table.from_pylist(rows, schema=RESPONSE)


def alpaca_outputs(answers: pa.Table, generator: str) -> list[dict[str, str]]:
    """Return the kept rows of RESPONSE as AlpacaEval's `model_outputs.json`, under the model's name `generator`."""
    return [
        {
            "instruction": row["instruction"],
            "output": row["output"],
            "generator": generator,
            "dataset": row["dataset"],
        }
        for row in answers.to_pylist()
        if row["drop_reason"] is None
    ]
