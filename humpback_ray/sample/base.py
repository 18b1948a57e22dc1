"""The base model of the miniature, trained on the spot by plain next-token prediction on the toy web.

Small enough for two CPU cores and about a minute (`learn.py`). Its tokenizer encodes any text byte for byte, so the
same base also runs on real pages (and writes nonsense there). Whole documents follow one another in rows of
`row_tokens`; each begins with the start token and ends with the end token, and every token carries loss: nothing here
knows what a question or a review is. Equal recipes and texts give equal weights on the same machine and libraries.

Muon (Jordan et al. 2024, github.com/KellerJordan/Muon; torch's implementation) trains the matrices inside the blocks,
AdamW the rest. AdamW alone learned to compare two names late, and with some seeds not at all within twice the steps.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Self, TypedDict, cast

from pydantic import Field, model_validator

from humpback_ray.config import Config
from humpback_ray.sample.learn import Learner, single_threaded

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

START, END, PAD = "<s>", "</s>", "<pad>"
TELL_EVERY_STEPS = 20


class BaseRecipe(Config):
    """Shape and training of the base model. Hashed into the fingerprint of every model made from it."""

    version: int = 3
    """Bumped by hand when the meaning of this recipe changes."""

    seed: int = 0
    """Seed of the initial weights and the order of documents."""

    vocabulary: int = Field(default=2560, ge=300)
    """Upper bound on tokenizer entries, including all 256 bytes."""

    width: int = Field(default=96, ge=16)
    """Size of the hidden state; the feed-forward layer is three times as wide."""

    layers: int = Field(default=3, ge=1)
    """Transformer blocks."""

    heads: int = Field(default=3, ge=1)
    """Attention heads; twice their number divides `width`. Fewer, wider heads learn to tell names apart sooner."""

    initial_deviation: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""

    positions: int = Field(default=2048, ge=64)
    """Context in tokens: real pages fit, though toy rows are short."""

    row_tokens: int = Field(default=128, ge=16)
    """Length of a training row. Documents attend to earlier ones in their row: separated, they taught copying less
    well."""

    batch_rows: int = Field(default=8, ge=1)
    """Rows per step. Six denser rows cost a fifth less, but M_1 then failed to rate a fifth of the demo's pairs."""

    steps: int = Field(default=2000, ge=1)
    """Optimizer steps."""

    learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate of AdamW: reached after `warmup_steps`, held, then decayed linearly to a twentieth
    (`share_at`)."""

    matrix_learning_rate: float = Field(default=5e-3, gt=0)
    """Peak learning rate of Muon, on the same schedule; at four times as much the model learns only frequent words."""

    warmup_steps: int = Field(default=50, ge=0)
    """Steps of linear warm-up."""

    weight_decay: float = Field(default=0.5, ge=0)
    """For AdamW; Muon has none. With 0.01 the base memorized the names in reviews and wrote no others."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"2 x {self.heads} heads does not divide width {self.width} (rotary heads need an even size); "
                "change one of them"
            )
        if self.row_tokens > self.positions:
            raise ValueError(
                f"row_tokens {self.row_tokens} is more than positions {self.positions}; lower the first or raise the "
                "second"
            )
        return self


class Trained(TypedDict):
    """How a base model was trained."""

    parameters: int
    tokens: int
    """Number of training tokens without padding."""
    metrics: list[list[float]]
    """Step, and mean loss since the previous entry: at step 1, every 20 steps and at the last step."""


def train_base(
    recipe: BaseRecipe,
    texts: Sequence[str],
    directory: Path,
    progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train a Llama from scratch on texts; save it, its tokenizer and its generation config to a directory.

    Args:
        recipe: its shape and schedule.
        texts: documents; the model learns to write an end token after each.
        directory: created if missing; receives config, `model.safetensors`, tokenizer and generation config.
        progress: called with every entry of `metrics` as (step, steps, loss).

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("the base model needs texts to learn from; got none")
    tokenizer = train_tokenizer(recipe, texts)
    documents = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]
    rows = pack_forever(documents, recipe.row_tokens, cast(int, tokenizer.pad_token_id), Random(recipe.seed))
    with single_threaded():
        model = _new_model(recipe, tokenizer)
        metrics, tokens = _learn(model, rows, recipe, progress)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return {"parameters": model.num_parameters(), "tokens": tokens, "metrics": metrics}


def train_tokenizer(recipe: BaseRecipe, texts: Sequence[str]) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer that puts the start token first, splits digits and loses no byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        min_frequency=2,
        special_tokens=[START, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _new_model(recipe: BaseRecipe, tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        initializer_range=recipe.initial_deviation,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(**special)
    return model


def _learn(
    model: "LlamaForCausalLM",
    rows: Iterator[list[int]],
    recipe: BaseRecipe,
    progress: Callable[[int, int, float], None] | None,
) -> tuple[list[list[float]], int]:
    import torch

    learner = Learner(model, recipe.row_tokens, recipe.matrix_learning_rate, recipe.learning_rate, recipe.weight_decay)
    metrics, recent, tokens = [], [], 0
    for step in range(1, recipe.steps + 1):
        ids = torch.tensor([next(rows) for _ in range(recipe.batch_rows)])
        recent.append(learner.step(ids, share_at(recipe, step)))
        tokens += int((ids != model.config.pad_token_id).sum())
        if step == 1 or step % TELL_EVERY_STEPS == 0 or step == recipe.steps:
            metrics.append([step, sum(recent) / len(recent)])
            recent.clear()
            if progress:
                progress(step, recipe.steps, metrics[-1][1])
    learner.finish()
    model.eval()
    return metrics, tokens


def share_at(recipe: BaseRecipe, step: int) -> float:
    """Return the share of the peak learning rate at a step, counted from 1: warm up, hold, decay to 0.05."""
    if step <= recipe.warmup_steps:
        return step / recipe.warmup_steps
    left = max(0, recipe.steps - step) / max(1, recipe.steps - recipe.warmup_steps)
    return min(1.0, 0.05 + 1.6 * left)


def pack_forever(documents: Sequence[list[int]], width: int, pad: int, rng: Random) -> Iterator[list[int]]:
    """Yield rows of `width` tokens forever, shuffling the documents for every pass.

    A row holds whole documents and padding; only a document longer than a row is cut, into consecutive rows.
    """
    row: list[int] = []
    order = list(range(len(documents)))
    while True:
        rng.shuffle(order)
        for document in (documents[index] for index in order):
            if row and len(row) + len(document) > width:
                yield row + [pad] * (width - len(row))
                row = []
            row = row + document
            while len(row) >= width:
                yield row[:width]
                row = row[width:]
