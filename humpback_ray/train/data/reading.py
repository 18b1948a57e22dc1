"""A job's examples: read, those held out set apart, and checked against the base model before any step."""

import itertools

from humpback_ray.prompts.chat import end_id, start_ids
from humpback_ray.prompts.tokenizer import Tokenizer
from humpback_ray.train.base import Base
from humpback_ray.train.data import validation
from humpback_ray.train.data.examples import Example, read_examples
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.state import Data


def read(job: TrainJob, context_tokens: int | None) -> Data:
    """Read a job's examples; `context_tokens` is the base model's limit.

    Raises:
        TrainingStopped: there are no examples, or none to train on because the recipe holds all of them out, or none to
            validate on although the recipe asks for validation.
    """
    found, counts = read_examples(job.token_uris)
    share, kept, too_long = job.recipe.validation_share, counts["kept"], counts["too_long"]
    try:
        examples, held_out = validation.split(found, share)
    except ValueError as error:
        raise TrainingStopped(f"{job.model}: {error}") from error
    counts["kept"], counts["held_out"] = len(examples), len(held_out)
    if examples:
        return Data(examples, held_out, dict(counts))
    if held_out:
        raise TrainingStopped(
            f"{job.model} has no examples: validation_share = {share} holds out all {kept} seed pairs"
            f"{f' that are not too long ({too_long} are)' if too_long else ''}, and there are no others; lower it, or "
            "set it to 0 to train on all of them"
        )
    dropped = {reason: count for reason, count in counts.items() if reason not in ("kept", "held_out", "truncated")}
    if not too_long:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise TrainingStopped(
            f"{job.model} has no examples: its token files keep no pairs ({reasons or 'they are empty'})"
        )
    limit, instead = f"{job.recipe.max_length_tokens} tokens", "raise train.recipe.max_length_tokens"
    if context_tokens is not None and context_tokens < job.recipe.max_length_tokens:
        limit += f" or the base model's context of {context_tokens}"
        instead = "use a model with a longer context"
    raise TrainingStopped(
        f"{job.model} has no examples: {too_long} of {sum(dropped.values())} pairs are longer than {limit}; {instead}, "
        "or set train.recipe.too_long to truncate"
    )


def examples_fault(job: TrainJob, base: Base, tokenizer: Tokenizer, data: Data) -> str | None:
    """Return why a model cannot learn from a job's examples, as one line; None if it can."""
    longest: Example | None = None
    start, end = start_ids(tokenizer), end_id(tokenizer)
    strange: list[str] = []
    for example in itertools.chain(data.examples, data.held_out):
        if not 0 < example.loss_start < example.length:
            return (
                f"{job.model}: example {example.id} has {example.length} tokens, and its target begins at token "
                f"{example.loss_start}, so it has no prompt or no target; make its token files again"
            )
        low, high = int(example.ids.min()), int(example.ids.max())
        if low < 0 or high >= base.rows:
            return (
                f"{job.model}: example {example.id} has the token id {low if low < 0 else high:,}, but the embedding "
                f"of {job.base_uri} has {base.rows:,} rows; {_REMADE}"
            )
        if longest is None or example.length > longest.length:
            longest = example
        if example.ids[: len(start)].tolist() != start or example.ids[-1] != end:
            strange.append(example.id)
    if len(strange) > data.counts["truncated"]:  # an example that was cut has no end token
        return (
            f"{job.model}: {len(strange):,} of {len(data.examples) + len(data.held_out):,} examples do not begin with "
            f"the start token and end with the end token of {job.base_uri} ({start} and {end}), the first is "
            f"{strange[0]}; {_REMADE}"
        )
    if longest and base.context_tokens and longest.length > base.context_tokens:
        return (
            f"{job.model}: example {longest.id} has {longest.length:,} tokens, but the context of {job.base_uri} has "
            f"{base.context_tokens:,}; {_REMADE}"
        )
    return None


_REMADE = "its token files were made for another model, so make them again with this one's tokenizer and context"
