"""An exported directory, loaded again in a fresh process and compared with the model in memory (P9).

Plain transformers must load it, with every weight in its place and the tokenizer unchanged. Its logits must equal those
in memory for two sequences: the longest training example, since an error of rotary frequencies grows with the position,
and a fixed prompt with the first 16 greedy tokens after it, which must be the same. Then it must generate. No sequence
is longer than a training example may be. fresh.py is the program of that process, and process.py runs it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humpback_ray.prompts.chat import ChatRecipe, encode_example, start_ids
from humpback_ray.train.data.examples import Direction
from humpback_ray.train.disk import save_tensors, scratch
from humpback_ray.train.export import process
from humpback_ray.train.export.fresh import Request, logits_at
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.types import SavedTokenizer, TrainingEngine

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PROBE = "Which rivers meet below the old mill, and why did the miller leave?"

TURNS = (
    (PROBE, "The Arle and the Tarn.\n\n1. He was old."),
    ("Say it in one word!", "Age"),
    ("- café?", "  Yes 東京."),
)
"""A conversation for which the tokens of training and serving are compared."""

TOLERANCE = {"float32": 5e-4, "bfloat16": 5e-2}
"""Largest difference of a logit, as a share of the largest logit.

Other kernels sum in another order, and merged adapters are rounded once more. In float32, a random Mixtral with merged
adapters differed by 1.5e-4; without any, its logits differed by 5e-5 from those in float64.
"""

PROBE_NEW_TOKENS = 16

PROBE_POSITIONS = 64
"""Positions of a sequence whose logits are compared: all logits of 2,048 tokens and 128,000 entries take 0.5 GB."""

LEAST_LIMIT_S, BYTES_PER_S, PRODUCTS_PER_S = 600.0, 10e6, 25e9
"""What the check may take: a time for any model, one for its bytes from a slow disk, one for its multiplications."""


@dataclass(frozen=True)
class Tokens:
    """Tokens, and the logits of the model in memory for some of them."""

    ids: list[int]
    positions: list[int]
    logits: "torch.Tensor"
    """Logits after the tokens at `positions`, [P, V], on the host and in the model's dtype."""


@dataclass(frozen=True)
class Probe:
    """The output of the model in memory."""

    prompt: list[int]
    """The whole prompt's tokens."""
    start: int
    """How many of them are used: all, unless the context is short."""
    greedy: list[int]
    """The tokens that it writes after these."""
    short: Tokens
    """They and all greedy tokens but the last; the last `len(greedy)` positions predict the greedy tokens."""
    long: Tokens
    """The longest training example."""


def probe_prompt(chat: ChatRecipe, direction: Direction) -> str:
    """Render the prompt on which memory and export are compared."""
    return chat.backward_prompt(PROBE) if direction == "backward" else chat.forward_prompt(PROBE)


def probe(engine: TrainingEngine, prompt: list[int], longest: Sequence[int], limit_tokens: int) -> Probe:
    """Let the trained model continue a prompt greedily, ignoring end tokens, and read an example; collective.

    Args:
        engine: the trained model.
        prompt: tokens of `probe_prompt`.
        longest: tokens of the longest example.
        limit_tokens: the model's context, or what training allows of it.
    """
    engine.eval()
    new = min(PROBE_NEW_TOKENS, max(1, limit_tokens // 2))
    ids = prompt[: max(1, limit_tokens - new)]
    start, greedy = len(ids), []
    for _ in range(new):
        ids = [*ids, *greedy[-1:]]
        greedy.append(int(logits_at(engine, ids, [len(ids) - 1], engine.device)[0].float().argmax()))
    whole = [int(token) for token in longest[:limit_tokens]]
    return Probe(prompt, start, greedy, _sequence(engine, ids, new), _sequence(engine, whole, 1))


def _sequence(engine: TrainingEngine, ids: list[int], last: int) -> Tokens:
    places = spread(len(ids), last)
    return Tokens(ids, places, logits_at(engine, ids, places, engine.device).cpu())


def spread(length: int, last: int) -> list[int]:
    """Return the `last` last positions of a sequence, and others so that there are `PROBE_POSITIONS` at even steps."""
    steps = PROBE_POSITIONS - 1
    even = {step * (length - 1) // steps for step in range(PROBE_POSITIONS)}
    return sorted(even | set(range(length - last, length)))


def unlike_training(directory: Path, tokenizer: SavedTokenizer, job: TrainJob) -> str | None:
    """Compare the token ids that a written directory's chat template gives messages with those of training.

    Args:
        directory: directory of the model, or of its tokenizer alone.
        tokenizer: the tokenizer that the model is trained with.
        job: the training job.

    Returns:
        The first difference in a conversation, as a message; None if there is none.
    """
    from transformers import AutoTokenizer

    served: Any = AutoTokenizer.from_pretrained(directory)
    trained: list[int] = []
    messages: list[dict[str, str]] = []
    for message, ids in messages_of_training(tokenizer, job):
        messages.append(message)
        trained += ids
        found = served.apply_chat_template(
            messages, add_generation_prompt=message["role"] == "user", tokenize=True, return_dict=False
        )
        if found != trained:
            start, *words = first_difference(served, trained, found)
            return (
                f"{job.model} would be served other tokens than it is trained on: in message {len(messages)} "
                f"({message['role']}), from token {start} on, training has {words[0]} and the chat template has "
                f"{words[1]}; the tokenizer of {job.base_uri} splits the layout differently there, so let "
                "chat.forward and chat.backward begin and end with a line break, or use another base model"
            )
    return None


def messages_of_training(tokenizer: SavedTokenizer, job: TrainJob) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Yield the messages of `TURNS`, each with the token ids that training gives it."""
    layout = job.chat.backward_prompt if job.direction == "backward" else job.chat.forward_prompt
    for number, (asked, answered) in enumerate(TURNS, start=1):
        example = encode_example(tokenizer, layout(asked), answered)
        first = 0 if number == 1 else len(start_ids(tokenizer))
        yield {"role": "user", "content": asked}, example.ids[first : example.loss_start]
        yield {"role": "assistant", "content": answered}, example.ids[example.loss_start :]


def first_difference(
    tokenizer: SavedTokenizer, trained: list[int], served: list[int]
) -> tuple[int, list[str], list[str]]:
    """Return a place shortly before two unequal lists of token ids differ, and some tokens of each from there on."""
    pairs = enumerate(zip([*served, None], [*trained, None], strict=False))
    place = next(place for place, (here, there) in pairs if here != there)
    around = slice(max(0, place - 2), place + 3)
    return (
        around.start,
        tokenizer.convert_ids_to_tokens(trained[around]),
        tokenizer.convert_ids_to_tokens(served[around]),
    )


def check_directory(
    directory: Path, asked: Probe, job: TrainJob, gpu: bool = False, host_bytes: int | None = None
) -> None:
    """Let a fresh process load a written directory, compare it with the model in memory, and let it generate.

    Args:
        directory: directory of the model.
        asked: the output of the model in memory.
        job: the training job.
        gpu: whether it may use the GPUs that this process sees.
        host_bytes: memory of the host that the weights may take, the rest stays on disk; None: half of what is free.

    Raises:
        TrainingStopped: tokens, logits or names of weights differ, or a logit is NaN.
        process.CheckFailed: the check could not be made.
    """
    import torch

    both, failed = [asked.short, asked.long], f"the exported {job.model} could not be loaded in a fresh process"
    needed = sum(one.logits.nbytes for one in both)
    with scratch("probe", f"writing the logits of {job.model}", needed) as folder:
        logits = folder / "logits.safetensors"
        save_tensors({str(number): one.logits.contiguous() for number, one in enumerate(both)}, logits)
        request = Request(
            directory=str(directory.absolute()),
            model=job.model,
            prompt=probe_prompt(job.chat, job.direction),
            prompt_ids=asked.prompt,
            start=asked.start,
            greedy=asked.greedy,
            passes=[one.ids for one in both],
            positions=[one.positions for one in both],
            logits=str(logits.absolute()),
            tolerance=TOLERANCE[job.recipe.dtype],
            threads=torch.get_num_threads(),
            gpu=gpu,
            host_bytes=host_bytes,
        )
        try:
            reply = process.started(gpu).ask(request, limit_s(directory, len(asked.long.ids)))
        except process.CheckFailed as failure:
            raise process.CheckFailed(f"{failed}: {failure}") from None
        finally:
            if gpu:
                process.ended()
    if "problem" in reply:
        raise TrainingStopped(reply["problem"])
    if "error" in reply:
        raise process.CheckFailed(f"{failed}: {reply['error']}")
    logger.info(
        "%s: loaded again%s, logits differ by %.2g, %d of %d greedy tokens agree, %d generated",
        job.model, reply["where"], reply["apart"], reply["agreed"], len(asked.greedy), reply["generated"],
    )  # fmt: skip


def limit_s(directory: Path, tokens: int) -> float:
    """Return the seconds that the check of a directory with sequences of that many tokens may take."""
    weights_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return LEAST_LIMIT_S + weights_bytes / BYTES_PER_S + tokens * weights_bytes / 2 / PRODUCTS_PER_S
