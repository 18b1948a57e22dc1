"""The transformers engine: are its replies right, how fast is it, and does it survive a lack of memory?

It is compared with the plain loop: `generate` on padded batches of 32, in order. In bfloat16 another batch size rounds
differently, and after one different token all later ones differ. So besides equal replies, the check measures how far
the logit of each written token is behind that of plain transformers' first choice.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from humpback_ray.engines.base import Completion, Request, generate_all
from humpback_ray.engines.transformers import TransformersEngine, fastest_dtype, gpu_dtype
from humpback_ray.needs import Resources
from humpback_ray.operate.plan.inference import RowWork, row_s
from humpback_ray.prompts.chat import encode, encode_prompt
from tests.gpu.material import SHAPES, Check, let_go, rates, writer

BEHIND = 5e-2
"""How far a written token's logit may be behind the largest, as a share of it; export/reload.py allows the same in
bfloat16."""
SCORED_APART = 0.2
"""Largest difference of a token's log-probability, in nats; rounding over 32 layers gives 0.1, a wrong mask about 1."""
GRADES = ("1", "2", "3", "4", "5")
PREFIX = "Score: "
LOOKED_AT = 4
"""Number of replies that are compared one by one."""
LARGER = 3
"""The larger model is expected to take this many times as long."""
GIVEN_UP = 16
"""An engine that runs a little short of memory must still hold at least one part in this many of its tokens."""
SPARE_BYTES = 3 << 29
"""Free memory of an engine that must run out of it: less than 128 rows of a 1B model take."""


def part_dtype(check: Check) -> None:
    """Check that `dtype: auto` does not depend on the time of a kernel launch."""
    chosen = [gpu_dtype() if check.gpu else fastest_dtype() for _ in range(20 if check.gpu else 2)]
    wrong = set(chosen) - {"bfloat16"} if check.gpu else set()
    check.report.judge("dtype", [f"chose {', '.join(wrong)} on a GPU"] if wrong else [], chosen=chosen)


@dataclass(frozen=True)
class Load:
    """A model and the requests to it."""

    check: Check
    name: str
    rows: int
    new: int
    """Tokens of the longest reply."""

    @property
    def requests(self) -> list[Request]:
        """Requests with prompts and replies of several lengths."""
        prompts = [f"Question {n}: " + "What flows below the old mill? " * (1 + n % 12) for n in range(self.rows)]
        return [Request(prompt, self.new * (1 + n % 4) // 4) for n, prompt in enumerate(prompts)]

    def build(self) -> Any:
        """Start the engine."""
        cpus, gpus = (8, 1) if self.check.gpu else (1, 0)
        where = str(writer(self.check, self.name))
        return TransformersEngine(dtype="bfloat16").build(where, Resources(cpus=cpus, gpus=gpus))


def part_engine(check: Check) -> None:
    """Let two models write and score, compare them with plain transformers, and run one with too little memory."""
    loads = [Load(check, "1b", 256, 128), Load(check, "7b", 256, 128)] if check.gpu else [
        Load(check, "tiny", 6, 8), Load(check, "small", 6, 8)]  # fmt: skip
    small, large = loads
    began = time.monotonic()
    check.report.attempt(f"engine-{small.name}", partial(measure, small))
    check.report.attempt(f"engine-{small.name}-short-of-memory", partial(run_short_of_memory, small))
    if check.report.fits(f"engine-{large.name}", LARGER * (time.monotonic() - began)):
        check.report.attempt(f"engine-{large.name}", partial(measure, large))


def measure(load: Load) -> None:
    """Write and score with the engine and with plain transformers; report how they compare."""
    import torch

    writer(load.check, load.name)
    held = let_go(load.check)
    if load.check.gpu:
        torch.cuda.reset_peak_memory_stats()
    engine = load.build()
    asyncio.run(generate_all(engine, load.requests[:8]))
    out, taken = timed(engine, load.requests)
    graded = [Request(one.prompt, continuations=GRADES, reply_prefix=PREFIX) for one in load.requests]
    scored, scoring = timed(engine, graded)
    engine.close()
    peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if load.check.gpu else None
    del engine
    let_go(load.check)
    plain = Plain(load)
    found = compared(plain, load.requests, out, scored)
    speed, rival = sum(one.completion_tokens for one in out) / taken, plain.tokens_per_s(load.requests[:64])
    load.check.report.judge(
        f"engine-{load.name}", problems(found, out, load.requests),
        characters=sum(len(one.text) for one in out), tokens_per_s=round(speed), plain_tokens_per_s=round(rival),
        ratio=round(speed / rival, 2), planned_tokens_per_s=round(planned_tokens_per_s(load, out)), **found,
        rubric_rows_per_s=round(load.rows / scoring, 1), scored=all(len(one.logprobs or ()) == 5 for one in scored),
        peak_gb=peak, held_gb=held,
    )  # fmt: skip


def timed(engine: Any, requests: Sequence[Request]) -> tuple[list[Completion], float]:
    """Return the completions and the seconds that they took."""
    began = time.monotonic()
    return asyncio.run(generate_all(engine, requests)), time.monotonic() - began


class Plain:
    """Plain transformers on an engine's model."""

    def __init__(self, load: Load) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = writer(load.check, load.name)
        self.tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left")
        loaded: Any = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, device_map=load.check.device)
        self.model = loaded.eval()

    def write(self, requests: Sequence[Request]) -> list[str]:
        """Generate greedily in one padded batch up to the longest reply; return each reply cut to its own length."""
        batch = self.tokenizer([one.prompt for one in requests], return_tensors="pt", padding=True).to(
            self.model.device
        )
        most = max(one.max_new_tokens for one in requests)
        ids = self.model.generate(**batch, max_new_tokens=most, do_sample=False)[:, batch["input_ids"].shape[1] :]
        cut = [row[: one.max_new_tokens] for row, one in zip(ids, requests, strict=True)]
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in cut]

    def tokens_per_s(self, requests: Sequence[Request]) -> float:
        """Return the speed of padded batches of 32, in order; tokens beyond a reply's length do not count."""
        self.write(requests[:8])
        began = time.monotonic()
        for first in range(0, len(requests), 32):
            self.write(requests[first : first + 32])
        return sum(one.max_new_tokens for one in requests) / (time.monotonic() - began)

    def logits(self, ids: Sequence[int], last: int) -> Any:
        """Return the logits after the last tokens of a sequence, float32 [last, V]."""
        import torch

        with torch.inference_mode():
            found = self.model(torch.tensor([ids], device=self.model.device), logits_to_keep=last)
        return found.logits[0].float()

    def behind(self, request: Request, text: str) -> float:
        """Return how far a text's worst token is behind the first choice, as a share of the largest logit."""
        import torch

        written = encode(self.tokenizer, text)
        ids = [*encode_prompt(self.tokenizer, request.prompt), *written]
        logits = self.logits(ids[:-1], len(written))
        chosen = logits.gather(1, torch.tensor(written, device=logits.device)[:, None])[:, 0]
        return ((logits.max(1).values - chosen).max() / logits.abs().max()).item()

    def grades(self, request: Request) -> list[float]:
        """Return the log-probability of each grade; a grade is one token."""
        ids = [*encode_prompt(self.tokenizer, request.prompt), *encode(self.tokenizer, PREFIX)]
        logits = self.logits(ids, 1)[0].log_softmax(0)
        return [logits[encode(self.tokenizer, grade)[0]].item() for grade in GRADES]


def compared(
    plain: Plain, requests: Sequence[Request], out: Sequence[Completion], scored: Sequence[Completion]
) -> dict[str, Any]:
    """Return how replies and grades differ from those of plain transformers."""
    looked_at = [*zip(requests, out, scored, strict=True)][:: max(1, len(requests) // LOOKED_AT)][:LOOKED_AT]
    equal = [plain.write([request]) == [reply.text] for request, reply, _ in looked_at]
    apart = [
        abs(mine - theirs)
        for request, _, grades in looked_at
        for mine, theirs in zip(grades.logprobs or (), plain.grades(request), strict=True)
    ]
    return {
        "greedy_equal": f"{sum(equal)} of {len(equal)}",
        "greedy_behind": round(max(plain.behind(request, reply.text) for request, reply, _ in looked_at), 4),
        "scored_apart": round(max(apart), 4),
    }


def problems(found: dict[str, Any], out: Sequence[Completion], requests: Sequence[Request]) -> list[str]:
    """Return what is wrong with replies and grades."""
    said = short(out, requests)
    if not found["greedy_behind"] <= BEHIND:
        said.append(
            f"a greedy token is {found['greedy_behind']:g} behind the first choice; noise is at most {BEHIND:g}"
        )
    if not found["scored_apart"] <= SCORED_APART:
        said.append(f"log-probabilities differ by {found['scored_apart']:g} nats; noise is at most {SCORED_APART:g}")
    return said


def short(out: Sequence[Completion], requests: Sequence[Request]) -> list[str]:
    """Return how many replies have the wrong length: the model writes no end token, so each must reach its limit."""
    wrong = sum(one.completion_tokens != asked.max_new_tokens for one, asked in zip(out, requests, strict=True))
    return [f"{wrong} of {len(out)} replies are shorter or longer than requested"] if wrong else []


def planned_tokens_per_s(load: Load, out: Sequence[Completion]) -> float:
    """Return the speed that the plan expects for such replies."""
    written = sum(one.completion_tokens for one in out) / len(out)
    work = RowWork(sum(one.prompt_tokens for one in out) / len(out), written)
    return written / row_s(SHAPES[load.name], 1, load.check.gpu, 2, work, rates())


def run_short_of_memory(load: Load) -> None:
    """Let an engine run out of memory: it must hold fewer tokens at once and lose no reply."""
    let_go(load.check)
    engine = load.build()
    before = engine._model.decoder.most_tokens
    with little_memory(load.check):
        out, taken = timed(engine, load.requests)
    after = engine._model.decoder.most_tokens
    engine.close()
    del engine
    said = short(out, load.requests)
    if load.check.gpu and after == before:
        said.append("memory did not run out: nothing was tested")
    if after < before / GIVEN_UP:
        said.append(f"it holds {after} tokens at once instead of {before}, but 1/{GIVEN_UP} of these would have fit")
    speed = round(sum(one.completion_tokens for one in out) / taken)
    load.check.report.judge(
        f"engine-{load.name}-short-of-memory", said, tokens_per_s=speed, tokens_held=after, tokens_held_before=before
    )


@contextlib.contextmanager
def little_memory(check: Check) -> Iterator[None]:
    """Limit torch to little more GPU memory than it has reserved; on a CPU do nothing."""
    if not check.gpu:
        yield
        return
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + SPARE_BYTES) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
