"""Names and shapes of a model's files, compared with its configuration before any weights are read.

transformers' own loader loads tensors without values into the model on the meta device, so families whose files name or
arrange parameters differently than their classes need no list of ours.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from humpback_ray.train.engine.weights import refuse_names
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.safetensor_files import Stored, Unusable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)


def check_shapes(config: "PreTrainedConfig", stored: Mapping[str, Stored], uri: str) -> "PreTrainedModel":
    """Compare names and shapes of stored tensors with the model's parameters; return the model without weights.

    Raises:
        Unusable: they differ.
    """
    import torch
    from transformers import AutoModelForCausalLM

    padding, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    ids = f" (pad_token_id = {padding}, vocab_size = {vocabulary})"
    with blaming(f"{uri}/config.json{ids} describes no model that can be built"), quiet(), torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    try:
        model, info = _loaded(type(built), config, stored)
    except Exception as error:  # noqa: BLE001 it is not certain that the files are at fault
        refuse_odd_expert(stored, uri)  # experts that should be one tensor could not be put together
        logger.warning("%s: names and shapes cannot be checked before the weights are loaded: %s", uri, error)
        return built
    if info["mismatched_keys"] or info["missing_keys"]:
        refuse_odd_expert(stored, uri)
    if wrong := sorted(info["mismatched_keys"]):
        name, here, wanted = wrong[0]
        more = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        raise Unusable(
            f"{uri}: {name} has shape {list(here)}, but the model's configuration calls for {list(wanted)}{more}; is "
            "its config.json from another model?"
        )
    where: Any = uri  # a Path would write s3:// with one slash
    try:
        refuse_names(where, info["missing_keys"], info["unexpected_keys"])
    except TrainingStopped as error:
        raise Unusable(str(error)) from error
    return model


def _loaded(
    kind: "type[PreTrainedModel]", config: "PreTrainedConfig", stored: Mapping[str, Stored]
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Load tensors without values with transformers' loader; return the model and what the loader says of them."""
    import torch

    tensors = {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}
    with quiet():
        loaded: Any = kind.from_pretrained(
            None, config=config, state_dict=tensors, device_map={"": "meta"}, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    return loaded


def refuse_odd_expert(stored: Mapping[str, Stored], uri: str) -> None:
    """Stop if a tensor of an expert is missing or has another shape than those of the other experts."""
    groups: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, tensor in stored.items():
        if found := re.fullmatch(r"(.*experts)\.(\d+)\.(.*)", name):
            groups.setdefault(f"{found[1]}.#.{found[3]}", {})[int(found[2])] = tensor.shape
    experts = max((max(group) + 1 for group in groups.values()), default=0)
    for pattern, group in groups.items():
        usual = Counter(group.values()).most_common(1)[0][0]
        for number in range(experts):
            name = pattern.replace("#", str(number))
            if number not in group:
                raise Unusable(f"{uri} lacks {name}, though there are {experts} experts; copy the model again")
            if group[number] != usual:
                raise Unusable(
                    f"{uri}: {name} has shape {list(group[number])}, but those of the other experts have {list(usual)}"
                    "; copy the model again"
                )


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn any error of a library that reads a model's files into `Unusable`."""
    try:
        yield
    except Unusable:
        raise
    except Exception as error:  # whatever a library raises for a file, the file is at fault
        said = " ".join(str(error).split())
        raise Unusable(f"{what}: {type(error).__name__}: {said[:400]}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, whose loader logs a report of everything that we raise."""
    from transformers.utils import logging as said

    level = said.get_verbosity()
    said.set_verbosity(logging.CRITICAL)
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
