"""Answers of a trained model to prompts, in the format of AlpacaEval's own tool.

Instructions carry both source tags, the seed's first (Li et al. 2023, arXiv:2308.06259, section 2.3: both together won
more often than either). The model sees a prompt without surrounding whitespace; files for other tools keep it byte for
byte, so they can match it. They have an entry for every prompt; its output is empty if there is no answer.
"""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines import NO_REPLY, Completion, EngineConfig, Request, TransformersEngine, generate_all
from humpback_ray.inputs.promptfiles import load_prompts
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe, Tags
from humpback_ray.records import RESPONSE, seed_of


class EvaluateRecipe(Config):
    """Which prompts are answered, and how. Hashed into the answers."""

    version: int = Field(default=2, ge=1)
    """Bumped by hand when the meaning of the answers changes."""

    inputs: list[str] | None = None
    """Files of prompts (JSON lines, JSON, Parquet; `promptfiles.py` defines the forms): paths, globs, `s3://` URIs.
    None: the sample's prompts; without a sample, nothing is answered."""

    min_kept: int = Field(default=1, ge=0)
    """Fewer prompts than this stop the run. Not hashed."""

    engine: EngineConfig = TransformersEngine()
    """Engine that runs the models; `kind` selects the class."""

    temperature: float = Field(default=0.7, ge=0)
    """The generation setting of section 3.1; 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling, same section."""

    tags: Tags = "both"
    """Source tags of the instructions: the paper uses both, S_a then S_w, at inference; the others are its ablation."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Cap on an answer, in tokens. A longer answer is cut and marked by its `finish_reason`. Ours; the paper reports
    none."""

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


def answer_request(row: Mapping[str, str], recipe: EvaluateRecipe, chat: ChatRecipe) -> Request:
    """Ask a model to answer one prompt (`id`, `instruction`), with the recipe's tags."""
    return Request(
        chat.forward_prompt(row["instruction"].strip(), recipe.tags),
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=seed_of(row["id"], "evaluate", recipe.seed),
    )


def responses(prompts: pa.Table, completions: Sequence[Completion]) -> pa.Table:
    """Pair every prompt with its answer; a prompt without a reply is dropped with a reason of `NO_REPLY`.

    Returns:
        A row of RESPONSE for each row of PROMPT. An answer cut at its limit is kept, so the judge sees it.
    """
    rows = []
    for prompt, completion in zip(prompts.to_pylist(), completions, strict=True):
        reason = NO_REPLY.get(completion.finish_reason)
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


def alpaca_outputs(prompts: Iterable[pa.Table], answers: Iterable[pa.Table], generator: str) -> list[dict[str, str]]:
    """Return AlpacaEval's `model_outputs.json`: an entry for each prompt, in their order.

    Args:
        prompts: rows of PROMPT.
        answers: rows of RESPONSE; a prompt with a dropped or missing answer gets an empty output.
        generator: the model's name.
    """
    outputs = {row["id"]: row["output"] for table in answers for row in table.select(["id", "output"]).to_pylist()}
    return [
        {
            "instruction": prompt["instruction"],
            "output": outputs.get(prompt["id"]) or "",
            "generator": generator,
            "dataset": prompt["dataset"],
        }
        for table in prompts
        for prompt in table.to_pylist()
    ]
