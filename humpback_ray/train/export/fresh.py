"""The program that loads an exported model again, in a process of its own (P9): `python -m ….export.fresh`.

The process that trained is no place for it: Liger's kernels replace transformers' code in the whole process. This one
holds nothing but plain transformers. It reads requests from its input, one JSON object in each line (`Request`), and
answers each in a line: {"apart": …} with the figures, {"problem": …} if the directory does not hold the trained model,
{"error": …} for any other failure. It imports its libraries at once and ends when its input does, so it cannot outlive
the process that asks.

Where the weights go: to the GPUs that it sees if it may use them, as far as their free memory goes, then to the host,
then they stay on disk and are read layer by layer. In the last case only one token is generated, since each takes
another pass over the files.
"""

import gc
import importlib
import inspect
import json
import logging
import os
import queue
import select
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

LISTEN_S = 2.0
"""Seconds between two looks whether the process that asks is alive, beside the end of the input."""

RESERVE_BYTES = 1 << 30
"""Memory of a GPU that is left to CUDA and its libraries."""

TOKEN_BYTES = 64
"""Bytes of activations for each token and hidden unit: a feed-forward layer's three tensors in 16 bits take 24."""

ROUTED = 8
"""One position in as many may differ by more than the tolerance in a bfloat16 model with experts: where a router's
choices are nearly equal, rounding decides which expert a token goes to."""


class Request(TypedDict):
    """What to load, and the outputs that it must have."""

    directory: str
    model: str
    """Its name, for messages."""
    prompt: str
    """A text that its tokenizer must encode as `prompt_ids`."""
    prompt_ids: list[int]
    start: int
    """The first tokens of that prompt that the greedy tokens follow."""
    greedy: list[int]
    passes: list[list[int]]
    """Token ids of each pass; the first is the prompt's start with all greedy tokens but the last."""
    positions: list[list[int]]
    """Positions of each pass whose logits are compared; the first ends with those that predict the greedy tokens."""
    logits: str
    """A safetensors file with the logits [P, V] of each pass, under its number."""
    tolerance: float
    """Largest difference of a logit, as a share of the largest."""
    threads: int
    gpu: bool
    host_bytes: int | None
    """Memory of the host that the weights may take; None: half of what is free."""


@dataclass(frozen=True)
class Placed:
    """Where weights go."""

    arguments: dict[str, Any]
    """Arguments of `from_pretrained`."""
    device: str
    """The device that reads the tokens."""
    words: str
    """The place, for the log."""
    whole: bool
    """Whether all weights stay in the memory of the devices that use them."""


class Unlike(Exception):
    """The directory does not hold the trained model; the message says in what it differs."""


def answer(request: Request) -> dict[str, Any]:
    """Load the model, compare it with the one in memory, and let it generate.

    Raises:
        Unlike: tokens, logits or names of weights differ, or a logit is NaN.
    """
    import torch
    from transformers import AutoTokenizer

    from humpback_ray.prompts.chat import encode_prompt

    torch.set_num_threads(request["threads"])
    name = request["model"]
    if encode_prompt(AutoTokenizer.from_pretrained(request["directory"]), request["prompt"]) != request["prompt_ids"]:
        raise Unlike(
            f"the exported tokenizer of {name} encodes the probe prompt differently than the tokenizer of training; "
            "not published"
        )
    model, placed = load_again(request)
    apart, agreed = compare(model, request, placed.device)
    start = request["prompt_ids"][: request["start"]]
    generated = generate(model, start, len(request["greedy"]) if placed.whole else 1, placed.device)
    if generated < 1:
        raise Unlike(f"the exported {name} generated nothing on the probe prompt; not published")
    return {"apart": apart, "agreed": agreed, "generated": generated, "where": placed.words}


def load_again(request: Request) -> tuple[Any, Placed]:
    """Load the model of a request with plain transformers.

    Raises:
        Unlike: the files lack a weight of the model, or have an unexpected one.
    """
    import psutil
    from transformers import AutoModelForCausalLM

    from humpback_ray.engines.attention import cap_scores

    directory = Path(request["directory"])
    weights_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    host = psutil.virtual_memory().available // 2 if request["host_bytes"] is None else request["host_bytes"]
    placed = place(weights_bytes, _gpu_room(request) if request["gpu"] else {}, host)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", use_safetensors=True, output_loading_info=True, **placed.arguments
    )
    model, found = loaded
    if lost := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise Unlike(
            f"the exported {request['model']} is not a model that transformers can load: {len(lost)} weights are "
            f"missing or unexpected, the first is {sorted(lost)[0]}; not published"
        )
    cap_scores(model)
    return model.eval(), placed


def _gpu_room(request: Request) -> dict[int, int]:
    """Return the bytes of each visible GPU that weights may take; none if this process may not use GPUs.

    A GPU in exclusive mode belongs to the process that trained, which still runs.
    """
    import torch
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(request["directory"]).get_text_config()
    activations = TOKEN_BYTES * max(map(len, request["passes"])) * config.hidden_size
    try:
        free = {number: torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())}
    except RuntimeError as error:
        logger.warning("the export is checked on the host, since this process cannot use the GPU: %s", error)
        return {}
    room = {number: int(0.95 * left) - RESERVE_BYTES - activations for number, left in free.items()}
    return {number: left for number, left in room.items() if left > 0}


def place(weights_bytes: int, gpus: Mapping[int, int], host_bytes: int) -> Placed:
    """Choose where weights go.

    Args:
        weights_bytes: size of the weights.
        gpus: bytes that they may take on each GPU; empty: no GPU.
        host_bytes: bytes that they may take on the host.
    """
    on_gpus = sum(gpus.values())
    whole, disk = weights_bytes <= on_gpus, weights_bytes > on_gpus + host_bytes
    limits = {"max_memory": {**gpus, "cpu": host_bytes}}
    if not gpus:
        arguments = {"device_map": "auto", **limits} if disk else {}
        return Placed(arguments, "cpu", " from disk" if disk else "", not disk)
    for number, room in gpus.items():
        if weights_bytes <= room:
            return Placed({"device_map": {"": number}}, f"cuda:{number}", " on a GPU", True)
    words = f" on {len(gpus)} GPUs" if whole else f" on {len(gpus)} GPUs and from {'disk' if disk else 'the host'}"
    return Placed({"device_map": "sequential", **limits}, f"cuda:{min(gpus)}", words, whole)


def compare(model: Any, request: Request, device: str) -> tuple[float, int]:
    """Compare a loaded model's logits with those of the model in memory.

    One pass over prompt and tokens proves greedy decoding: each token must be the likeliest after the tokens before it,
    or behind the likeliest by no more than the tolerance of logits, since rounding differs. In a bfloat16 model with
    experts, a few may differ by more (`ROUTED`).

    Returns:
        The largest difference of a logit that counts, as a share of the largest, and how many greedy tokens agree.

    Raises:
        Unlike: logits or greedy tokens differ, or a logit is NaN.
    """
    from safetensors.torch import load_file

    asked, differences = load_file(request["logits"]), []
    name, tolerance, greedy = request["model"], request["tolerance"], request["greedy"]
    behind, choices, limit, spare = [0.0], None, 0.0, spared(model)
    for number, (ids, positions) in enumerate(zip(request["passes"], request["positions"], strict=True)):
        expected = asked[str(number)].float()
        found = logits_at(model, ids, positions, device).float().cpu()
        scale = expected.abs().max().clamp_min(1e-6)
        rows = (found - expected).abs().amax(1) / scale
        ranked = rows.nan_to_num(float("inf")).argsort(descending=True, stable=True)
        worst = int(ranked[spare(len(rows)) if rows.isfinite().all() else 0])
        differences.append(rows[worst].item())
        if not differences[-1] <= tolerance:
            raise Unlike(
                f"the exported {name} is not the trained model: logits differ by {differences[-1]:.2g} of the largest "
                f"at token {positions[worst] + 1:,} of {len(ids):,}, but {tolerance:g} is the limit; not published"
            )
        if number == 0:
            choices, limit = found[-len(greedy) :], (tolerance * scale).item()
            behind = [(row.max() - row[token]).item() for row, token in zip(choices, greedy, strict=True)]
    worst = sorted(range(len(behind)), key=lambda place: -behind[place])[spare(len(behind))]
    if choices is not None and behind[worst] > limit:
        raise Unlike(
            f"the exported {name} is not the trained model: greedy token {worst + 1} of {len(behind)} is "
            f"{greedy[worst]} in memory and {int(choices[worst].argmax())} when loaded again; not published"
        )
    return max(differences), sum(gap == 0 for gap in behind)


def spared(model: Any) -> Callable[[int], int]:
    """Return a function that says how many of some positions may differ by more than the tolerance."""
    import torch

    routed = any("expert" in name or "router" in name for name, _ in model.named_parameters())
    return lambda count: count // ROUTED if routed and model.config.dtype == torch.bfloat16 else 0


def logits_at(model: Any, ids: Sequence[int], positions: Sequence[int], device: Any) -> "torch.Tensor":
    """Return a model's logits at some positions [P, V]; no others are computed if the model's class can do that."""
    import torch

    forward = getattr(model, "module", model).forward
    keeps = "logits_to_keep" in inspect.signature(forward).parameters
    kept = {"logits_to_keep": list(positions)} if keeps else {}  # a list fits hidden states on any device
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False, **kept).logits[0]
    return logits if keeps else logits[list(positions)]


def generate(model: Any, prompt: Sequence[int], new_tokens: int, device: str) -> int:
    """Let a loaded model generate at most `new_tokens` tokens greedily; return how many it generated."""
    import torch

    greedy = {"do_sample": False, "temperature": None, "top_p": None}
    inputs = torch.tensor([list(prompt)], device=device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are calling .generate.. with the `input_ids` being on a device")
        reply = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new_tokens, **greedy)
    return reply.shape[1] - len(prompt)


LIBRARIES = (
    "torch", "safetensors.torch", "psutil", "humpback_ray.prompts.chat", "humpback_ray.engines.attention",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What `answer` needs; every family of models imports what Llama's does."""


def import_libraries() -> None:
    """Import them, so that the first request need not wait; make them quiet, and choose attention as in training."""
    for module in LIBRARIES:
        importlib.import_module(module)
    from transformers.utils import logging

    from humpback_ray.engines.attention import avoid_cudnn

    logging.disable_progress_bar()
    avoid_cudnn()


def listen(lines: "queue.SimpleQueue[str]", parent: int) -> None:
    """Pass the lines of the input on; end this process, whatever it does, when the input or its parent ends."""
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], LISTEN_S)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            lines.put(line)
    os._exit(0)


def main() -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(lines, os.getppid()), daemon=True).start()
    failed: Exception | None = None
    try:
        import_libraries()
    except Exception as error:  # noqa: BLE001 the process that asks raises it
        failed = error
    gc.freeze()  # the collections below need not look at the libraries
    while True:
        request = json.loads(lines.get())
        try:
            if failed is not None:
                raise failed
            reply = answer(request)
        except Unlike as problem:
            reply = {"problem": str(problem)}
        except Exception as error:  # noqa: BLE001 the process that asks raises it
            reply = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
