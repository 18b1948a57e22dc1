"""An exported directory, loaded again and compared with the model in memory (P9).

Plain transformers must load it, with every weight in its place and the tokenizer unchanged. Its logits on a probe
prompt and its first 16 greedy tokens must equal those in memory, and it must generate. One pass over prompt and tokens
proves greedy decoding: each token must be the likeliest after the tokens before it, or behind the likeliest by no more
than the tolerance of logits, since rounding differs.

The model in memory may be on the same host. So a model larger than half of the host's free memory is left on disk and
read layer by layer. Then only one token is generated, not 16, since each token takes another pass over the files.
"""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humpback_ray.prompts.chat import ChatRecipe, encode_example, encode_prompt, start_ids
from humpback_ray.train.data.examples import Direction
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.types import Causal, Generating, Probed, SavedTokenizer

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

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a logit, as a share of the largest logit: GPUs and hosts sum in different orders."""

PROBE_NEW_TOKENS = 16


@dataclass(frozen=True)
class Probe:
    """The output of the model in memory for a prompt."""

    ids: list[int]
    """The prompt and all greedy tokens but the last."""
    greedy: list[int]
    logits: "torch.Tensor"
    """Logits for `ids`, float32 [T, V] on the host; the last `len(greedy)` rows predict the greedy tokens."""

    @property
    def prompt(self) -> list[int]:
        """The tokens of the prompt."""
        return self.ids[: len(self.ids) - len(self.greedy) + 1]


def probe_prompt(chat: ChatRecipe, direction: Direction) -> str:
    """Render the prompt on which memory and export are compared."""
    return chat.backward_prompt(PROBE) if direction == "backward" else chat.forward_prompt(PROBE)


def probe(engine: Probed, ids: list[int]) -> Probe:
    """Let the trained model continue a prompt greedily, ignoring end tokens; collective under ZeRO 3."""
    import torch

    engine.eval()
    ids, greedy = list(ids), []
    logits = None
    for _ in range(PROBE_NEW_TOKENS):
        ids += greedy[-1:]
        with torch.no_grad():
            logits = engine(input_ids=torch.tensor([ids], device=engine.device), use_cache=False).logits[0].float()
        greedy.append(int(logits[-1].argmax()))
    assert logits is not None
    return Probe(ids, greedy, logits.cpu())


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


def check_directory(directory: Path, asked: Probe, job: TrainJob, host_bytes: int | None = None) -> None:
    """Load a written directory with plain transformers, compare it with the model in memory, and let it generate.

    Args:
        directory: directory of the model.
        asked: the output of the model in memory.
        job: the training job.
        host_bytes: memory that the loaded weights may take, the rest stays on disk; None: half of the free memory.

    Raises:
        TrainingStopped: tokens, logits or names of weights differ, or a logit is NaN.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if encode_prompt(tokenizer, probe_prompt(job.chat, job.direction)) != asked.prompt:
        raise TrainingStopped(
            f"the exported tokenizer of {job.model} encodes the probe prompt differently than the tokenizer of training"
            "; not published"
        )
    model, on_disk = load_again(directory, job.model, host_bytes)
    apart, agreed = compare(model, asked, job)
    count = len(asked.greedy)
    generated = generate(model, asked.prompt, 1 if on_disk else count)  # each token is another pass over the files
    if generated < 1:
        raise TrainingStopped(f"the exported {job.model} generated nothing on the probe prompt")
    logger.info(
        "%s: loaded again%s, logits differ by %.2g, %d of %d greedy tokens agree, %d generated",
        job.model, " from disk" if on_disk else "", apart, agreed, count, generated,
    )  # fmt: skip


def compare(model: Causal, asked: Probe, job: TrainJob) -> tuple[float, int]:
    """Compare the outputs of a loaded model and of the model in memory for the probe.

    Returns:
        The largest difference of a logit, as a share of the largest logit, and how many greedy tokens agree.

    Raises:
        TrainingStopped: logits or greedy tokens differ, or a logit is NaN.
    """
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([asked.ids])).logits[0].float()
    scale = asked.logits.abs().max().clamp_min(1e-6)
    apart = ((logits - asked.logits).abs().max() / scale).item()
    tolerance = TOLERANCE[job.recipe.dtype]
    if not apart <= tolerance:
        raise TrainingStopped(
            f"the exported {job.model} is not the trained model: logits differ by {apart:.2g} of the largest, "
            f"but {tolerance:g} is the limit; not published"
        )
    choices = logits[-len(asked.greedy) :]
    behind = [(row.max() - row[token]).item() for row, token in zip(choices, asked.greedy, strict=True)]
    worst = max(range(len(behind)), key=lambda place: behind[place])
    if behind[worst] > tolerance * scale:
        raise TrainingStopped(
            f"the exported {job.model} is not the trained model: greedy token {worst + 1} of {len(behind)} is "
            f"{asked.greedy[worst]} in memory and {int(choices[worst].argmax())} when loaded again; not published"
        )
    return apart, sum(gap == 0 for gap in behind)


def generate(model: Generating, prompt: list[int], new_tokens: int) -> int:
    """Let a loaded model generate at most `new_tokens` tokens greedily; return how many it generated."""
    import torch

    greedy = {"do_sample": False, "temperature": None, "top_p": None}
    inputs = torch.tensor([prompt])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are calling .generate.. with the `input_ids` being on a device")
        reply = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new_tokens, **greedy)
    return reply.shape[1] - len(prompt)


def load_again(directory: Path, name: str, host_bytes: int | None = None) -> tuple[Generating, bool]:
    """Load a model with plain transformers on this host; return it, and whether a part was left on disk.

    Raises:
        TrainingStopped: the files lack a weight of the model, or have an unexpected one.
    """
    import psutil
    from transformers import AutoModelForCausalLM

    room = host_bytes if host_bytes is not None else psutil.virtual_memory().available // 2
    on_disk = sum(path.stat().st_size for path in directory.glob("*.safetensors")) > room
    placed = {"device_map": "auto", "max_memory": {"cpu": room}} if on_disk else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", use_safetensors=True, output_loading_info=True, **placed
    )
    model, found = loaded
    if lost := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise TrainingStopped(
            f"the exported {name} is not a model that transformers can load: {len(lost)} weights are missing or "
            f"unexpected, the first is {sorted(lost)[0]}; not published"
        )
    return model.eval(), on_disk
